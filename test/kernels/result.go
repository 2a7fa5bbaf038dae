// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

type verdict string

const (
	pass verdict = "PASS"
	fail verdict = "FAIL"
	skip verdict = "SKIP"
)

// result of a suite on a kernel.
type result struct {
	suite   string
	verdict verdict
	reason  string // one line
	detail  string // of a failure, for people
	seconds float64
	doctor  []byte // what `shunt doctor -o json` printed
}

func (r result) fail(reason string) result {
	r.verdict, r.reason = fail, reason
	return r
}

// test is a leaf: one without subtests.
type test struct {
	name   string
	action string // pass, fail, skip; empty if it did not end
	output string
}

// readTests reads what a test binary printed with -test.v=test2json.
func readTests(ctx context.Context, log string) ([]test, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json")
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(log, "\r", ""))
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool test2json: %w", err)
	}
	return parseTests(out)
}

func parseTests(events []byte) ([]test, error) {
	var all []*test
	byName := map[string]*test{}
	lines := bufio.NewScanner(bytes.NewReader(events))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("read test events: %w", err)
		}
		if e.Test == "" {
			continue
		}
		t := byName[e.Test]
		if t == nil {
			t = &test{name: e.Test}
			byName[e.Test] = t
			all = append(all, t)
		}
		switch e.Action {
		case "output":
			t.output += e.Output
		case "pass", "fail", "skip":
			t.action = e.Action
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read test events: %w", err)
	}
	var leaves []test
	for _, t := range all {
		// One with subtests counts only by them, unless it alone failed.
		bad := func(o *test) bool { return o.action != "pass" && o.action != "skip" }
		children := slices.DeleteFunc(slices.Clone(all), func(o *test) bool { return !strings.HasPrefix(o.name, t.name+"/") })
		if len(children) == 0 || bad(t) && !slices.ContainsFunc(children, bad) {
			leaves = append(leaves, *t)
		}
	}
	return leaves, nil
}

// where matches what testing puts before a message.
var where = regexp.MustCompile(`^\s*\w+_test\.go:\d+: (.*)$`)

// said is the first message of a test, in one line.
func (t test) said() string {
	for line := range strings.Lines(t.output) {
		if m := where.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			return m[1]
		}
	}
	return "no message"
}

// judge decides by the status file. A guest that left none died.
func (r *result) judge(o outcome, tests []test) {
	count := map[string]int{}
	var failed, skipped []string
	for _, t := range tests {
		count[t.action]++
		switch t.action {
		case "pass":
		case "skip":
			if why := t.name + ": " + t.said(); !slices.Contains(skipped, why) {
				skipped = append(skipped, why)
			}
		default:
			failed = append(failed, t.name)
			r.detail += t.output
		}
	}
	status, lived := o.status()
	switch {
	case o.late:
		r.verdict, r.reason = fail, "the guest did not end in its time"+during(tests)
		r.detail += o.died()
	case !lived:
		r.verdict, r.reason = fail, "the guest died"+during(tests)
		r.detail += o.died()
	case status != "0":
		r.verdict, r.reason = fail, fmt.Sprintf("exit status %s: %s", status, strings.Join(failed, ", "))
		if len(failed) == 0 {
			r.detail = tail(o.log)
		}
	case len(failed) > 0: // a test binary that lies
		r.verdict, r.reason = fail, "exit status 0, but failed: "+strings.Join(failed, ", ")
	case count["pass"] == 0:
		r.verdict, r.reason = skip, "no test ran"
		if len(skipped) > 0 {
			r.reason = strings.Join(skipped, "; ")
		}
	default:
		r.verdict, r.reason = pass, fmt.Sprintf("%d passed", count["pass"])
		if len(skipped) > 0 {
			r.reason += fmt.Sprintf(", %d skipped: %s", count["skip"], strings.Join(skipped, "; "))
		}
	}
}

// during names the test that was running at the end.
func during(tests []test) string {
	for _, t := range slices.Backward(tests) {
		if t.action == "" {
			return " in " + t.name
		}
	}
	return ""
}
