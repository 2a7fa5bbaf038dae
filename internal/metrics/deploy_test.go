// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

var (
	metricName = regexp.MustCompile(`\bshunt_[a-z0-9_]+`)
	selection  = regexp.MustCompile(`\b(shunt_[a-z0-9_]+)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`^([a-z_]+)(=|!=|=~|!~)"([^"]*)"$`)
	grouping   = regexp.MustCompile(`\bby \(([^)]*)\)`)
	counted    = regexp.MustCompile(`\b(rate|increase)\((shunt_[a-z0-9_]+)(\{[^}]*\})?\[[^]]+\]\)`)
)

// checkQuery finds what is wrong with a query: a metric, a label or a label's
// value that does not exist, a counter taken as it is, a gauge that is not.
func checkQuery(query string) []string {
	var wrong []string
	note := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	known := map[string]Metric{}
	targets := []string{"instance", "job"} // labels that Prometheus adds
	labels := slices.Clone(targets)
	for _, m := range Describe() {
		known[m.Name] = m
		labels = append(labels, m.Labels...)
	}
	for _, name := range metricName.FindAllString(query, -1) {
		if _, ok := known[name]; !ok && name != instanceLabel {
			note("no metric %s", name)
		}
	}
	for _, s := range selection.FindAllStringSubmatch(query, -1) {
		for _, m := range strings.Split(s[2], ",") {
			parts := matcher.FindStringSubmatch(m)
			if parts == nil {
				note("cannot read %q", m)
				continue
			}
			if !slices.Contains(known[s[1]].Labels, parts[1]) && !slices.Contains(targets, parts[1]) {
				note("%s has no label %s", s[1], parts[1])
			}
			for _, l := range Labels() {
				if l.Metric == s[1] && l.Name == parts[1] && !slices.ContainsFunc(l.Values, func(v Value) bool { return v.Name == parts[3] }) {
					note("%s has no %s %q", s[1], parts[1], parts[3])
				}
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		for _, l := range strings.Split(g[1], ",") {
			if !slices.Contains(labels, strings.TrimSpace(l)) {
				note("no label %s", l)
			}
		}
	}
	for _, c := range counted.FindAllStringSubmatch(query, -1) {
		if known[c[2]].Type != counter {
			note("%s of %s, which is no counter", c[1], c[2])
		}
	}
	for _, name := range metricName.FindAllString(counted.ReplaceAllString(query, ""), -1) {
		if known[name].Type == counter {
			note("%s is a counter, and taken without rate or increase", name)
		}
	}
	if strings.Count(query, "(") != strings.Count(query, ")") {
		note("parentheses do not match")
	}
	return wrong
}

func TestCheckQuery(t *testing.T) {
	for query, want := range map[string]string{
		`sum by (instance, place) (rate(shunt_accel_faults_total[5m])) > 0`: "",
		`shunt_accel_sockets / shunt_accel_sockets_limit`:                   "",
		`rate(shunt_accel_left_total{reason!="shutdown"}[5m])`:              "",
		`rate(shunt_accel_lefts_total[5m])`:                                 "no metric",
		`shunt_accel_left_total > 0`:                                        "without rate",
		`rate(shunt_accel_sockets[5m])`:                                     "no counter",
		`rate(shunt_accel_left_total{reason="boredom"}[5m])`:                `no reason "boredom"`,
		`rate(shunt_accel_left_total{place="reset"}[5m])`:                   "no label place",
		`sum by (port) (shunt_accel_sockets)`:                               "no label port",
		`sum(shunt_accel_sockets`:                                           "parentheses",
	} {
		got := strings.Join(checkQuery(query), "; ")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

func TestAlerts(t *testing.T) {
	b, err := os.ReadFile("../../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []struct {
				Alert       string            `yaml:"alert"`
				Expr        string            `yaml:"expr"`
				For         string            `yaml:"for"`
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			for _, w := range checkQuery(r.Expr) {
				t.Errorf("%s: %s", r.Alert, w)
			}
			if r.Alert == "" || seen[r.Alert] || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || !metricName.MatchString(r.Expr) {
				t.Errorf("alert %q lacks something, or is there twice", r.Alert)
			}
			seen[r.Alert] = true
			// What a text takes from the labels has to survive the sum.
			for _, l := range regexp.MustCompile(`\$labels\.([a-z_]+)`).FindAllStringSubmatch(fmt.Sprint(r.Annotations), -1) {
				if by := grouping.FindStringSubmatch(r.Expr); by != nil && !strings.Contains(by[1], l[1]) {
					t.Errorf("%s: no label %s after the sum", r.Alert, l[1])
				}
			}
		}
	}
	for _, want := range []string{"ShuntFault", "ShuntTableFull", "ShuntSpills", "ShuntLeaves"} {
		if !seen[want] {
			t.Errorf("no alert %s", want)
		}
	}
}

func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("../../deploy/grafana/shunt.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Templating struct {
			List []struct {
				Name       string
				Definition string
			}
		}
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	variables := []string{"$__rate_interval"}
	for _, v := range board.Templating.List {
		variables = append(variables, "$"+v.Name)
		for _, w := range checkQuery(v.Definition) {
			t.Errorf("variable %s: %s", v.Name, w)
		}
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range board.Panels {
		if ids[p.ID] || len(p.Targets) == 0 {
			t.Errorf("%s: its id is another's, or it shows nothing", p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x > 23 {
					t.Fatalf("%s lies on %q or outside", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, q := range p.Targets {
			for _, w := range checkQuery(q.Expr) {
				t.Errorf("%s: %s", p.Title, w)
			}
			for _, name := range metricName.FindAllString(q.Expr, -1) {
				used[name] = true
			}
			for _, v := range regexp.MustCompile(`\$[a-z_]+`).FindAllString(q.Expr, -1) {
				if !slices.Contains(variables, v) {
					t.Errorf("%s: no variable %s", p.Title, v)
				}
			}
		}
	}
	for _, want := range []string{"shunt_accel_redirected_bytes_total", "shunt_accel_joined_total", "shunt_accel_left_total", "shunt_accel_faults_total"} {
		if !used[want] {
			t.Errorf("the dashboard does not show %s", want)
		}
	}
}
