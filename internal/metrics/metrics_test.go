// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/node"
)

const patience = 20 * time.Second

// some is an instance in which every field has another value.
func some(name string, from uint64) node.Instance {
	next := func() uint64 { from++; return from }
	count := func() accel.Count { return accel.Count{Messages: next(), Bytes: next()} }
	s := accel.Stats{
		Connections: next(), Joined: next(), Redirected: count(), Resets: next(), Counters: 1,
		NotJoined: map[string]uint64{}, Left: map[string]uint64{}, Stack: map[string]accel.Count{}, Faults: map[string]uint64{},
	}
	names := accel.AllNames()
	for _, n := range names.NotJoined {
		s.NotJoined[n] = next()
	}
	for _, n := range names.Left {
		s.Left[n] = next()
	}
	for _, n := range names.Stack {
		s.Stack[n] = count()
	}
	for _, n := range names.Faults {
		s.Faults[n] = next()
	}
	return node.Instance{Name: name, Cgroup: "/cgroup/" + name, Owned: true, Mapped: int(next()), MaxQueue: uint32(next()), Stats: s}
}

func fixed(list ...node.Instance) func() ([]node.Instance, error) {
	return func() ([]node.Instance, error) { return list, nil }
}

// scrape returns every series as text, name{labels}, with its value.
func scrape(t *testing.T, c *Collector) map[string]float64 {
	t.Helper()
	var b bytes.Buffer
	if err := c.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return parse(t, &b)
}

func parse(t *testing.T, r io.Reader) map[string]float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]float64{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			slices.Sort(labels)
			key := name
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.Counter != nil:
				series[key] = m.Counter.GetValue()
			case m.Gauge != nil:
				series[key] = m.Gauge.GetValue()
			default:
				t.Errorf("%s is neither counter nor gauge", key)
			}
		}
	}
	return series
}

// Every value arrives under its name.
func TestValues(t *testing.T) {
	i := some("a", 1000)
	want := map[string]float64{
		`shunt_accel_connections_total{shunt_instance="a"}`:                                                      float64(i.Stats.Connections),
		`shunt_accel_joined_total{shunt_instance="a"}`:                                                           float64(i.Stats.Joined),
		`shunt_accel_redirected_bytes_total{shunt_instance="a"}`:                                                 float64(i.Stats.Redirected.Bytes),
		`shunt_accel_redirected_messages_total{shunt_instance="a"}`:                                              float64(i.Stats.Redirected.Messages),
		`shunt_accel_spilled_bytes_total{shunt_instance="a"}`:                                                    float64(i.Stats.Stack["spill"].Bytes),
		`shunt_accel_spilled_messages_total{shunt_instance="a"}`:                                                 float64(i.Stats.Stack["spill"].Messages),
		`shunt_accel_resets_total{shunt_instance="a"}`:                                                           float64(i.Stats.Resets),
		`shunt_accel_sockets{shunt_instance="a"}`:                                                                float64(i.Mapped),
		`shunt_accel_sockets_limit{shunt_instance="a"}`:                                                          131072,
		`shunt_accel_queue_bound_bytes{shunt_instance="a"}`:                                                      float64(i.MaxQueue),
		`shunt_accel_owned{shunt_instance="a"}`:                                                                  1,
		`shunt_accel_instance_info{cgroup="/cgroup/a",shunt_instance="a"}`:                                       1,
		`shunt_scrape_errors_total`:                                                                              0,
		fmt.Sprintf(`shunt_build_info{goversion=%q,kernel=%q,version="v1"}`, runtime.Version(), kernelRelease()): 1,
	}
	for why, n := range i.Stats.NotJoined {
		want[fmt.Sprintf(`shunt_accel_not_joined_total{reason=%q,shunt_instance="a"}`, why)] = float64(n)
	}
	for why, n := range i.Stats.Left {
		want[fmt.Sprintf(`shunt_accel_left_total{reason=%q,shunt_instance="a"}`, why)] = float64(n)
	}
	for why, n := range i.Stats.Stack {
		want[fmt.Sprintf(`shunt_accel_stack_bytes_total{reason=%q,shunt_instance="a"}`, why)] = float64(n.Bytes)
		want[fmt.Sprintf(`shunt_accel_stack_messages_total{reason=%q,shunt_instance="a"}`, why)] = float64(n.Messages)
	}
	for place, n := range i.Stats.Faults {
		want[fmt.Sprintf(`shunt_accel_faults_total{place=%q,shunt_instance="a"}`, place)] = float64(n)
	}
	if diff := cmp.Diff(want, scrape(t, New(fixed(i), "v1"))); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

// The series of an instance are there from its first scrape, and no others come.
func TestSeriesDoNotAppearLater(t *testing.T) {
	names := func(i node.Instance) map[string]bool {
		set := map[string]bool{}
		for name := range scrape(t, New(fixed(i), "v1")) {
			set[name] = true
		}
		return set
	}
	idle := node.Instance{Name: "a", Cgroup: "/cgroup/a", MaxQueue: 1}
	if diff := cmp.Diff(names(idle), names(some("a", 1))); diff != "" {
		t.Errorf("idle (-) and busy (+) differ:\n%s", diff)
	}
}

func TestLint(t *testing.T) {
	var b bytes.Buffer
	if err := New(fixed(some("a", 1), some("b", 500)), "v1").WriteText(&b); err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(&b).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	// The linter works.
	bad, err := promlint.New(strings.NewReader("# TYPE shunt_bad counter\nshunt_bad 1\n")).Lint()
	if err != nil || len(bad) == 0 {
		t.Errorf("no problem found in a counter without _total: %v", err)
	}
}

// The text is what Prometheus's own library writes for the same values.
func TestTextFormat(t *testing.T) {
	var ours, theirs bytes.Buffer
	if err := New(fixed(some("a", 1), some("odd \\ \"name\"\n", 500)), "v1").WriteText(&ours); err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(ours.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range Describe() {
		if _, err := expfmt.MetricFamilyToText(&theirs, families[m.Name]); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(theirs.String(), ours.String()); diff != "" {
		t.Errorf("the library's (-), ours (+):\n%s", diff)
	}
}

func TestDescribeIsComplete(t *testing.T) {
	var b bytes.Buffer
	if err := New(fixed(some("a", 1)), "v1").WriteText(&b); err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(&b)
	if err != nil {
		t.Fatal(err)
	}
	exported, described := map[string]string{}, map[string]string{}
	labels := map[string][]string{}
	for name, f := range families {
		exported[name] = strings.ToLower(f.GetType().String())
		for _, m := range f.GetMetric() {
			var names []string
			for _, l := range m.GetLabel() {
				names = append(names, l.GetName())
			}
			labels[name] = names
		}
	}
	for _, m := range Describe() {
		described[m.Name] = m.Type
		if diff := cmp.Diff(m.Labels, labels[m.Name], cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: labels described (-), exported (+):\n%s", m.Name, diff)
		}
	}
	if diff := cmp.Diff(exported, described); diff != "" {
		t.Errorf("exported (-), described (+):\n%s", diff)
	}
	for _, l := range Labels() {
		for _, v := range l.Values {
			if v.Name == "" || v.Meaning == "" || v.Meaning == v.Name {
				t.Errorf("%s: %s %q is explained as %q", l.Metric, l.Name, v.Name, v.Meaning)
			}
		}
	}
}

func TestCountersNeverGoBack(t *testing.T) {
	const redirected = `shunt_accel_redirected_bytes_total{shunt_instance="a"}`
	i := some("a", 1000)
	source := func() ([]node.Instance, error) { return []node.Instance{i}, nil }
	c := New(source, "v1")
	expect := func(what string, want float64) {
		t.Helper()
		if got := scrape(t, c)[redirected]; got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	i.Stats.Redirected.Bytes = 100
	expect("first", 100)
	i.Stats.Redirected.Bytes = 70 // a connection is closing
	expect("a step back", 100)
	i.Stats.Redirected.Bytes = 110
	expect("forward", 110)
	i.Stats.Counters, i.Stats.Redirected.Bytes = 2, 5 // loaded anew
	expect("other counters", 5)

	i.Mapped = 10
	scrape(t, c)
	i.Mapped = 3
	if got := scrape(t, c)[`shunt_accel_sockets{shunt_instance="a"}`]; got != 3 {
		t.Errorf("the gauge stays at %v", got)
	}
	c.source = fixed()
	scrape(t, c)
	if len(c.marks) != 0 {
		t.Error("the marks of an instance outlive it")
	}
}

func TestWhatCannotBeRead(t *testing.T) {
	fail := errors.New("layout of another version")
	var err error
	c := New(func() ([]node.Instance, error) { return []node.Instance{some("a", 1)}, err }, "v1")
	const redirected, failed = `shunt_accel_redirected_bytes_total{shunt_instance="a"}`, `shunt_scrape_errors_total`
	for n := range 3 {
		var b bytes.Buffer
		if got := c.WriteText(&b); !errors.Is(got, err) {
			t.Errorf("error %v, want %v", got, err)
		}
		s := parse(t, &b)
		if s[failed] != float64(n) || s[redirected] == 0 {
			t.Errorf("%v failed, want %d; redirected %v", s[failed], n, s[redirected])
		}
		err = fail
	}
}

// A cgroup's name is any bytes; one odd name must not cost the others.
func TestOddInstances(t *testing.T) {
	s := scrape(t, New(fixed(some("a", 1), some("a", 500), some("\xff\"\n", 900)), "v1"))
	if got := s[`shunt_accel_connections_total{shunt_instance="a"}`]; got != 2 {
		t.Errorf("of two with one name: %v, want the first", got)
	}
	if got := s[`shunt_accel_connections_total{shunt_instance="?\"\n"}`]; got != 901 {
		t.Errorf("the odd one: %v", got)
	}
}

func TestServe(t *testing.T) {
	before := runtime.NumGoroutine()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := Handler(New(fixed(some("a", 1)), "v1"))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- ServeOn(ctx, l, h) }()
	client := &http.Client{Transport: &http.Transport{}, Timeout: patience}
	url := "http://" + l.Addr().String()
	ask := func(method, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	if status, body := ask("GET", "/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", status, body)
	}
	status, body := ask("GET", "/metrics")
	if s := parse(t, strings.NewReader(body)); status != 200 || s[`shunt_accel_connections_total{shunt_instance="a"}`] != 2 {
		t.Errorf("/metrics: %d %s", status, body)
	}
	if status, _ := ask("POST", "/metrics"); status != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: %d", status)
	}
	if status, _ := ask("GET", "/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("GET /debug/pprof/: %d", status)
	}
	if err := Serve(ctx, l.Addr().String(), h); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("the same address again: %v", err)
	}
	// One that says nothing must not hold up the end.
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("stopped: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("does not stop")
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("still listens")
	}
	client.CloseIdleConnections()
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b := make([]byte, 64<<10)
			t.Fatalf("%d goroutines, before %d:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
	}
}

// docs/metrics.md is what the program says.
func TestDocumentation(t *testing.T) {
	got, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if err := WriteMarkdown(&want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("run make metrics; generated (-), committed (+):\n%s", diff)
	}
}

// Scrapes that hang do not pile up.
func TestScrapesAreBounded(t *testing.T) {
	entered, release := make(chan struct{}, 2*maxScrapes), make(chan struct{})
	h := Handler(New(func() ([]node.Instance, error) {
		entered <- struct{}{}
		<-release
		return nil, nil
	}, "v1"))
	ask := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Code
	}
	answers := make(chan int, maxScrapes+1)
	for range maxScrapes + 1 { // one reads, the others wait for it; one is too many
		go func() { answers <- ask() }()
	}
	if code := <-answers; code != http.StatusServiceUnavailable {
		t.Errorf("the first answer is %d, want that of the one too many", code)
	}
	<-entered
	close(release)
	for range maxScrapes {
		if code := <-answers; code != http.StatusOK {
			t.Errorf("one that waited got %d", code)
		}
	}
	if code := ask(); code != http.StatusOK {
		t.Errorf("afterwards: %d", code)
	}
}
