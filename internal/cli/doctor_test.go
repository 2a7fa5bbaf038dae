// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"github.com/shuntnet/shunt/internal/kernel"
)

var someChecks = []kernel.Check{
	{Name: "a", Status: kernel.Pass, Detail: "good"},
	{Name: "longer", Status: kernel.Warn, Detail: "slow", Fix: "kernel 6.2 or newer"},
	{Name: "b", Status: kernel.Fail, Detail: "absent", Fix: "mount it"},
}

func TestDoctorTable(t *testing.T) {
	var out bytes.Buffer
	if err := newReport(someChecks).table(&out); err != nil {
		t.Fatal(err)
	}
	want := `PASS  a       good
WARN  longer  slow
      fix: kernel 6.2 or newer
FAIL  b       absent
      fix: mount it
1 pass, 1 warn, 1 fail: accel cannot run here as it is
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}

func TestDoctorCommand(t *testing.T) {
	var out bytes.Buffer
	cmd := newDoctor()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true // as the root command does
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"-o", "json"})
	err := cmd.Execute()
	var r report
	if e := json.Unmarshal(out.Bytes(), &r); e != nil {
		t.Fatalf("%v in %s", e, out.String())
	}
	if n := r.Pass + r.Warn + r.Fail; n == 0 || n != len(r.Checks) {
		t.Errorf("%d counted, %d listed", n, len(r.Checks))
	}
	var exit *ExitError
	if failed := errors.As(err, &exit); failed != (r.Fail > 0) || (failed && (exit.Code != 1 || exit.Err != nil)) {
		t.Errorf("%d failed, error %v", r.Fail, err)
	}
}

// All formats say the same.
func TestDoctorFormats(t *testing.T) {
	r := newReport(someChecks)
	out := map[string]*bytes.Buffer{}
	for _, format := range []string{"json", "jsonl", "yaml"} {
		out[format] = &bytes.Buffer{}
		if err := print(out[format], format, r, r.Checks, nil); err != nil {
			t.Fatal(err)
		}
	}
	var fromJSON, fromYAML, fromLines report
	if err := errors.Join(json.Unmarshal(out["json"].Bytes(), &fromJSON), yaml.Unmarshal(out["yaml"].Bytes(), &fromYAML)); err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(out["jsonl"]); dec.More(); {
		var c kernel.Check
		if err := dec.Decode(&c); err != nil {
			t.Fatal(err)
		}
		fromLines.Checks = append(fromLines.Checks, c)
	}
	fromLines = newReport(fromLines.Checks)
	for format, got := range map[string]report{"json": fromJSON, "yaml": fromYAML, "jsonl": fromLines} {
		if diff := cmp.Diff(r, got); diff != "" {
			t.Errorf("-o %s: want (-), got (+):\n%s", format, diff)
		}
	}
}

func TestGroupsRefuseUnknownCommands(t *testing.T) {
	for _, args := range [][]string{{"bench", "foo"}, {"completion", "foo"}, {"foo"}} {
		root := newRoot()
		root.SetArgs(args)
		root.SetOut(&bytes.Buffer{})
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), `"foo"`) {
			t.Errorf("%v: error %v, want one about \"foo\"", args, err)
		}
	}
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs([]string{"bench"})
	root.SetOut(&out)
	if err := root.Execute(); err != nil || !strings.Contains(out.String(), "accel") {
		t.Errorf("bench: %v, %s", err, &out)
	}
}

func TestDoctorRefusesUnknownFormat(t *testing.T) {
	cmd := newDoctor()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs([]string{"-o", "xml"})
	if cmd.Execute() == nil {
		t.Error("-o xml was accepted")
	}
}

func TestColourIsForTerminals(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	if useColour(&bytes.Buffer{}) {
		t.Error("colour in a buffer")
	}
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo terminals here: ", err)
	}
	defer tty.Close()
	if !useColour(tty) {
		t.Error("no colour on a terminal")
	}
	t.Setenv("NO_COLOR", "1")
	if useColour(tty) {
		t.Error("colour in spite of NO_COLOR")
	}
}
