// Command testcount reads the output of go test -json on stdin. It prints one line per package, everything a
// failed or skipped test had to say, and last, alone on its line, "N passed, N failed, N skipped".
//
// Only leaf tests count: a test with subtests is the sum of them, unless it failed by itself. A package that failed
// outside any test (build, TestMain, a crash) counts as one failure, so that "0 failed" always means success.
//
// The exit status is 1 if anything failed or nothing passed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	total, err := run(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testcount:", err)
		total.failed = max(total.failed, 1)
	}
	if total.passed+total.failed+total.skipped == 0 {
		fmt.Fprintln(os.Stderr, "testcount: no test ran")
	}
	fmt.Println(total)
	if err != nil || total.failed > 0 || total.passed == 0 {
		os.Exit(1)
	}
}

// event is one line of go test -json, see go doc test2json and go help buildjson.
type event struct {
	Action      string
	Package     string
	ImportPath  string // instead of Package, in the events of a build
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

type count struct{ passed, failed, skipped int }

func (c count) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}

type test struct {
	name   string
	result string // pass, fail, skip; empty while it runs
	output strings.Builder
}

type pkg struct {
	tests  []*test
	byName map[string]*test
	output strings.Builder // what no test wrote
}

func (p *pkg) test(name string) *test {
	t := p.byName[name]
	if t == nil {
		t = &test{name: name}
		p.byName[name] = t
		p.tests = append(p.tests, t)
	}
	return t
}

// run reports on the events in r and returns the sum of all packages.
func run(r io.Reader, w io.Writer) (count, error) {
	var total count
	packages := map[string]*pkg{}
	builds := map[string]*strings.Builder{}
	var open []string // packages without an end yet, in order of appearance

	finish := func(name string, end event) {
		p := packages[name]
		c := p.report(w, end, builds[end.FailedBuild])
		total.passed += c.passed
		total.failed += c.failed
		total.skipped += c.skipped
		open = slices.DeleteFunc(open, func(s string) bool { return s == name })
		delete(packages, name)
		fmt.Fprintln(w, summary(name, end, c))
	}

	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(w, line) // what the go command itself says
			} else if e.Action == "build-output" {
				if builds[e.ImportPath] == nil {
					builds[e.ImportPath] = &strings.Builder{}
				}
				builds[e.ImportPath].WriteString(e.Output)
			} else if e.Package != "" {
				p := packages[e.Package]
				if p == nil {
					p = &pkg{byName: map[string]*test{}}
					packages[e.Package] = p
					open = append(open, e.Package)
				}
				if p.add(e) {
					finish(e.Package, e)
				}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return total, fmt.Errorf("read test events: %w", err)
		}
	}
	for len(open) > 0 { // go test itself was killed
		finish(open[0], event{Action: "fail"})
	}
	return total, nil
}

// add takes one event in and tells whether it was the package's last.
func (p *pkg) add(e event) bool {
	switch e.Action {
	case "run":
		p.test(e.Test)
	case "output":
		switch {
		case isChatter(e.Output):
		case e.Test == "":
			p.output.WriteString(e.Output)
		default:
			p.test(e.Test).output.WriteString(e.Output)
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			return true
		}
		p.test(e.Test).result = e.Action
	}
	return false
}

// isChatter tells the lines of go test itself that add nothing to the report.
func isChatter(line string) bool {
	if line == "FAIL\n" || strings.HasPrefix(line, "FAIL\t") && !strings.HasSuffix(line, "]\n") {
		return true
	}
	for _, verb := range []string{"RUN", "PAUSE", "CONT", "NAME"} {
		if strings.HasPrefix(line, "=== "+verb+" ") {
			return true
		}
	}
	return false
}

// parent returns the name of the test that ran this one as a subtest, or "". A subtest's own name may contain slashes.
func (p *pkg) parent(name string) string {
	for i := strings.LastIndexByte(name, '/'); i >= 0; i = strings.LastIndexByte(name[:i], '/') {
		if p.byName[name[:i]] != nil {
			return name[:i]
		}
	}
	return ""
}

// report prints what went wrong or was skipped and counts the leaves.
func (p *pkg) report(w io.Writer, end event, build *strings.Builder) count {
	var c count
	children := map[string][]*test{}
	for _, t := range p.tests {
		if parent := p.parent(t.name); parent != "" {
			children[parent] = append(children[parent], t)
		}
		if t.result == "" { // cut off by a crash, a timeout or os.Exit
			t.result = "fail"
		}
	}
	for _, t := range p.tests {
		if t.result == "fail" || t.result == "skip" {
			fmt.Fprint(w, t.output.String())
		}
		ownFailure := t.result == "fail" && !slices.ContainsFunc(children[t.name], func(s *test) bool { return s.result == "fail" })
		switch {
		case len(children[t.name]) > 0 && !ownFailure:
		case t.result == "pass":
			c.passed++
		case t.result == "fail":
			c.failed++
		case t.result == "skip":
			c.skipped++
		}
	}
	if end.Action == "fail" {
		if build != nil {
			fmt.Fprint(w, build.String())
		}
		fmt.Fprint(w, p.output.String())
		if c.failed == 0 {
			c.failed = 1
		}
	}
	return c
}

func summary(name string, end event, c count) string {
	switch {
	case end.Action == "fail" || c.failed > 0:
		return fmt.Sprintf("FAIL  %s  %.1f s  %v", name, end.Elapsed, c)
	case c == count{}:
		return fmt.Sprintf("-     %s  no tests", name)
	default:
		return fmt.Sprintf("ok    %s  %.1f s  %v", name, end.Elapsed, c)
	}
}
