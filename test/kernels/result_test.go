// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
)

const events = `{"Action":"start"}
{"Action":"run","Test":"TestA"}
{"Action":"run","Test":"TestA/one"}
{"Action":"output","Test":"TestA/one","Output":"    a_test.go:7: no such thing\n"}
{"Action":"skip","Test":"TestA/one"}
{"Action":"run","Test":"TestA/two"}
{"Action":"pass","Test":"TestA/two"}
{"Action":"pass","Test":"TestA"}
{"Action":"run","Test":"TestB"}
`

func TestJudge(t *testing.T) {
	done, err := parseTests([]byte(events + `{"Action":"pass","Test":"TestB"}`))
	if err != nil {
		t.Fatal(err)
	}
	broken, err := parseTests([]byte(events + `{"Action":"output","Test":"TestB","Output":"    b_test.go:1: wrong\n"}` + "\n" + `{"Action":"fail","Test":"TestB"}`))
	if err != nil {
		t.Fatal(err)
	}
	torn, err := parseTests([]byte(events))
	if err != nil {
		t.Fatal(err)
	}
	status := func(s string) outcome { return outcome{files: map[string][]byte{"status": []byte(s + "\n")}} }
	for name, c := range map[string]struct {
		o      outcome
		tests  []test
		want   verdict
		reason string
	}{
		"pass":        {status("0"), done, pass, "2 passed, 1 skipped: TestA/one: no such thing"},
		"fail":        {status("1"), broken, fail, "exit status 1: TestB"},
		"liar":        {status("0"), broken, fail, "exit status 0, but failed: TestB"},
		"crash":       {status("2"), nil, fail, "exit status 2: "},
		"cut off":     {status("2"), torn, fail, "exit status 2: TestB"},
		"guest died":  {outcome{console: "Kernel panic"}, torn, fail, "the guest died in TestB"},
		"empty file":  {outcome{files: map[string][]byte{"status": {}}}, nil, fail, "the guest died"},
		"late":        {outcome{late: true}, torn, fail, "the guest did not end in its time in TestB"},
		"all skipped": {status("0"), done[:1], skip, "TestA/one: no such thing"},
		"nothing":     {status("0"), nil, skip, "no test ran"},
	} {
		var r result
		r.judge(c.o, c.tests)
		if r.verdict != c.want || r.reason != c.reason {
			t.Errorf("%s: got %s %q, want %s %q", name, r.verdict, r.reason, c.want, c.reason)
		}
		if name == "guest died" && !strings.Contains(r.detail, "Kernel panic") {
			t.Errorf("%s: its console is not shown: %q", name, r.detail)
		}
	}
}

func TestArtifacts(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range map[string]string{"out/status": "0\n", "out/doctor.json": "{}"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(text)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := artifacts(b.Bytes()); string(got["status"]) != "0\n" || string(got["doctor.json"]) != "{}" {
		t.Errorf("got %q", got)
	}
	if got := artifacts(b.Bytes()[:700]); len(got) > 1 {
		t.Errorf("from a torn archive: %q", got)
	}
	if s, ok := (outcome{files: artifacts(nil)}).status(); ok {
		t.Errorf("a status from nothing: %q", s)
	}
}

// What doctor refuses is skipped on old kernels and fails on those that must work.
func TestRefused(t *testing.T) {
	no, err := parseDoctor([]byte(`{"fail":1,"checks":[{"name":"btf","status":"FAIL","detail":"none"},{"name":"jit","status":"PASS"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	yes, err := parseDoctor([]byte(`{"fail":0,"checks":[{"name":"btf","status":"PASS"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	needs, needsNot := suite{name: "x", accelFrom: "6.6"}, suite{name: "y"}
	for _, c := range []struct {
		series string
		d      *doctor
		s      suite
		want   verdict // empty: run it
	}{
		{"6.1", no, needs, skip}, {"6.12", no, needs, fail}, {"6.6", no, needs, fail}, {"7.3", no, needs, fail},
		{"6.1", yes, needs, ""}, {"6.12", yes, needs, ""}, {"6.1", no, needsNot, ""}, {"6.1", nil, needs, ""},
	} {
		r, decided := report{kernel: kernel{series: c.series}, doctor: c.d}.refused(c.s)
		if r.verdict != c.want || decided != (c.want != "") {
			t.Errorf("%+v: got %q", c, r.verdict)
		}
		if decided && r.reason != "accel is refused: btf: none" {
			t.Errorf("%+v: %q", c, r.reason)
		}
	}
	for _, text := range []string{"", "{}", "["} {
		if _, err := parseDoctor([]byte(text)); err == nil {
			t.Errorf("%q is taken for an answer", text)
		}
	}
}

func TestChoose(t *testing.T) {
	for names, want := range map[string]string{
		"":                        "refusal kernel accel guarantees guarantees-end",
		"accel":                   "refusal accel",
		"guarantees-end,refusal":  "refusal guarantees-end",
		"guarantees,no-such-suit": "",
	} {
		chosen, err := choose(names)
		var got []string
		for _, s := range chosen {
			got = append(got, s.name)
		}
		if strings.Join(got, " ") != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %v, %v", names, got, err)
		}
	}
}

func TestMarkdown(t *testing.T) {
	d, err := parseDoctor([]byte(`{"fail":1,"checks":[{"name":"a|b","status":"FAIL","detail":"none"},{"name":"jit","status":"PASS"},{"name":"guard G5","status":"PASS","detail":"yes"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	got := markdown([]report{{
		kernel: kernel{series: "6.1", release: "6.1.0-56", pkg: pkg{version: "6.1.192-2"}}, doctor: d,
		results: []result{{suite: "x", verdict: pass, reason: "2 passed"}},
	}}, []suite{{name: "x", pkg: "./x"}}, "the command")
	for _, want := range []string{
		"\nthe command\n", "\n| 6.1 | 6.1.0-56 | 6.1.192-2 | is refused | PASS |\n", "\n| FAIL | a\\|b | none |\n",
		"\n| PASS | guard G5 | yes |\n", "\n| x | PASS | 2 passed |\n", "\n- `x`: `go test ./x`\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "jit") {
		t.Error("what passed is listed, too")
	}
}
