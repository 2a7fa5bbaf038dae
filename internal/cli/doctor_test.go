// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"testing"

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
