// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"
	"golang.org/x/sys/unix"
)

// inAllFormats asks a noun for its list in each format and returns it. All of
// them have to say the same; keep says which rows are of interest.
func inAllFormats(t *testing.T, noun string, keep func(row map[string]any) bool) (rows []map[string]any, table string) {
	t.Helper()
	ask := func(format string) string {
		t.Helper()
		p := command(t, shunt, noun, "-o", format)
		out := p.succeed(t)
		checkComplaint(t, p, "")
		return out
	}
	var fromYAML, fromLines []map[string]any
	decode(t, ask("json"), &rows)
	for l := range strings.Lines(ask("jsonl")) {
		var row map[string]any
		decode(t, l, &row)
		fromLines = append(fromLines, row)
	}
	var loose any
	if err := yaml.Unmarshal([]byte(ask("yaml")), &loose); err != nil {
		t.Fatalf("%s -o yaml: %v", noun, err)
	}
	asJSON, err := json.Marshal(loose) // the same types as from JSON
	if err != nil {
		t.Fatal(err)
	}
	decode(t, string(asJSON), &fromYAML)

	for _, list := range []*[]map[string]any{&rows, &fromYAML, &fromLines} {
		*list = slices.DeleteFunc(*list, func(row map[string]any) bool { return !keep(row) })
		for _, row := range *list {
			delete(row, "age_seconds") // asked at another time
			if row["left"] == "" {
				delete(row, "left")
			}
		}
	}
	if diff := cmp.Diff(rows, fromYAML); diff != "" {
		t.Errorf("%s: json (-) and yaml (+) differ:\n%s", noun, diff)
	}
	if diff := cmp.Diff(rows, fromLines); diff != "" {
		t.Errorf("%s: json (-) and jsonl (+) differ:\n%s", noun, diff)
	}
	table = ask("table")
	if plain := command(t, shunt, noun).succeed(t); columns(plain) != columns(table) {
		t.Errorf("%s: the table is not the default: %q", noun, plain)
	}
	return rows, table
}

// columns is the head of a table.
func columns(table string) string {
	head, _, _ := strings.Cut(table, "\n")
	return strings.Join(strings.Fields(head), " ")
}

func TestNounsDuringARun(t *testing.T) {
	require(t)
	p, d, s := talking(t)
	d.say("go")
	d.expect("exchange 1 done")

	t.Run("status", func(t *testing.T) {
		rows, table := inAllFormats(t, "status", func(row map[string]any) bool { return row["name"] == s.name })
		if len(rows) != 1 {
			t.Fatalf("%d rows of this run", len(rows))
		}
		row := rows[0]
		stats := row["stats"].(map[string]any)
		if row["owned"] != true || row["mapped"] != 2.0 || row["cgroup"] != s.cgroup || stats["joined"] != 1.0 || stats["connections"] != 1.0 {
			t.Errorf("%v", row)
		}
		line := rowOf(t, table, s.name)
		if want := []string{s.name, "running", "1", "1", "2"}; !slices.Equal(strings.Fields(line)[:5], want) {
			t.Errorf("table: %q, want it to start with %v", line, want)
		}
	})
	t.Run("accel", func(t *testing.T) {
		rows, table := inAllFormats(t, "accel", func(row map[string]any) bool { return row["instance"] == s.name })
		if len(rows) != 2 {
			t.Fatalf("%d rows of this run, want one a direction", len(rows))
		}
		var messages float64
		for _, row := range rows {
			other := rows[0]
			if row["local"] == other["local"] {
				other = rows[1]
			}
			if row["path"] != "short" || row["local"] != other["remote"] || row["cookie"] != other["peer_cookie"] || row["side"] == other["side"] {
				t.Errorf("%v", row)
			}
			for _, path := range []string{"redirected", "stack", "spilled"} {
				messages += row[path].(map[string]any)["messages"].(float64)
			}
			if line := rowOf(t, table, row["local"].(string)); !strings.Contains(line, s.name) || !strings.Contains(line, " short ") {
				t.Errorf("table: %q", line)
			}
		}
		if messages != 2*talkMessages {
			t.Errorf("%v messages, sent were %d", messages, 2*talkMessages)
		}
	})
	d.end()
	if status := p.wait(t); status != 0 {
		t.Errorf("%s: %s", describe(status), &p.err)
	}
}

// rowOf finds the line of a table that starts with a name.
func rowOf(t *testing.T, table, name string) string {
	t.Helper()
	for l := range strings.Lines(table) {
		if strings.HasPrefix(l, name+" ") {
			return l
		}
	}
	t.Fatalf("no %s in %q", name, table)
	return ""
}

func TestVersion(t *testing.T) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"go": runtime.Version(), "linux": unix.ByteSliceToString(u.Release[:]), "arch": runtime.GOARCH}
	for _, format := range []string{"json", "jsonl", "yaml", "table"} {
		out := command(t, shunt, "version", "-o", format).succeed(t)
		got := map[string]string{}
		switch format {
		case "table":
			for l := range strings.Lines(out) {
				f := strings.Fields(l)
				got[f[0]] = f[1]
			}
		case "yaml":
			if err := yaml.Unmarshal([]byte(out), &got); err != nil {
				t.Fatal(err)
			}
		default:
			decode(t, out, &got)
		}
		if got["shunt"] == "" {
			t.Errorf("-o %s: no version of shunt", format)
		}
		delete(got, "shunt")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-o %s: %s", format, diff)
		}
	}
}

// doctor's table and JSON agree, and it is right: shunt run works here.
func TestDoctor(t *testing.T) {
	require(t)
	var report struct {
		Pass, Warn, Fail int
		Checks           []struct{ Name, Status, Detail, Fix string }
	}
	decode(t, command(t, shunt, "doctor", "-o", "json").succeed(t), &report)
	table := command(t, shunt, "doctor").succeed(t)
	counts := map[string]int{}
	for _, c := range report.Checks {
		counts[c.Status]++
		if !strings.Contains(table, c.Status+"  "+c.Name+" ") || (c.Fix != "" && !strings.Contains(table, c.Fix)) {
			t.Errorf("the table lacks %+v", c)
		}
	}
	if len(report.Checks) == 0 || counts["PASS"] != report.Pass || counts["WARN"] != report.Warn || counts["FAIL"] != report.Fail {
		t.Errorf("%d pass, %d warn, %d fail of %v", report.Pass, report.Warn, report.Fail, counts)
	}
	if want := fmt.Sprintf("\n%d pass, %d warn, %d fail", report.Pass, report.Warn, report.Fail); !strings.Contains(table, want) {
		t.Errorf("the table does not say %q", want)
	}
	command(t, shunt, "run", "-q", "--", "true").succeed(t)
}

func TestCompletion(t *testing.T) {
	require(t, "bash")
	script := writeFile(t, "shunt.bash", command(t, shunt, "completion", "bash").succeed(t), 0o644)
	command(t, "bash", "-n", script).succeed(t)
	// What the script asks shunt when somebody presses Tab.
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"st"}, "status"},
		{[]string{"run", "--max"}, "--max-queue"},
		{[]string{"status", "-o", ""}, "yaml"},
	} {
		out := command(t, append([]string{shunt, "__completeNoDesc"}, c.args...)...).succeed(t)
		if !slices.Contains(lines(out), c.want) {
			t.Errorf("%v completes to %q, want %s in it", c.args, out, c.want)
		}
	}
}

// CI compares the pages with those committed.
func TestManPagesAreDeterministic(t *testing.T) {
	require(t)
	read := func() map[string]string {
		dir, pages := t.TempDir(), map[string]string{}
		command(t, shunt, "man", dir).succeed(t)
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			pages[filepath.Base(name)] = string(b)
		}
		return pages
	}
	first := read()
	if diff := cmp.Diff(first, read()); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"shunt.1", "shunt-run.1", "shunt-status.1", "shunt-accel.1", "shunt-doctor.1", "shunt-demo.1", "shunt-completion-bash.1"} {
		if first[name] == "" {
			t.Errorf("no %s among %d pages", name, len(first))
		}
	}
}
