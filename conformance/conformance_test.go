// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shuntnet/shunt/conformance"
	"github.com/shuntnet/shunt/internal/kernel"
	"github.com/shuntnet/shunt/internal/node"
)

var (
	only        = flag.String("only", "", "run only the cases whose name contains this, or of this guarantee")
	connections = flag.Int("connections", 2000, "how many the loops of short connections open")
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == conformance.PeerCommand {
		if err := conformance.PeerMain(os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// need skips where the machine cannot run the tests, or fails if none may be skipped.
func need(t *testing.T) {
	t.Helper()
	reason := ""
	if os.Geteuid() != 0 {
		reason = "needs root"
	} else if _, err := kernel.Cgroup2(); err != nil {
		reason = err.Error()
	}
	switch {
	case reason == "":
	case os.Getenv("SHUNT_REQUIRE_ALL") == "1":
		t.Fatalf("SHUNT_REQUIRE_ALL=1, but this test %s", reason)
	default:
		t.Skip(reason)
	}
}

func session() (conformance.Session, error) {
	s, err := node.NewSession(node.SessionOptions{})
	if err != nil { // not a Session that holds nothing
		return nil, err
	}
	return s, nil
}

// TestConformance: accelerated sockets do what plain ones do, and the unguarded
// control does not, in every row that names it: else the row could not fail.
func TestConformance(t *testing.T) {
	need(t)
	r, err := conformance.Run(t.Context(), conformance.Options{Session: session, Only: *only, Connections: *connections})
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	if testing.Verbose() {
		t.Log("\n" + table.String())
	}
	for _, row := range r.Rows {
		if row.Verdict == conformance.Fail && row.Place != conformance.PlaceControl {
			t.Errorf("%s %s, %s, %s: %s\n  plain: %v\n  here:  %v", row.Guarantee, row.Case, row.Mode, row.Place, row.Reason, row.Plain, row.Seen)
		}
	}
	carried := 0
	for _, row := range r.Rows {
		if row.Verdict == conformance.Pass && row.Place != conformance.PlaceControl && row.Redirected > 0 {
			carried++
		}
	}
	if carried == 0 {
		t.Error("nothing was accelerated: the suite compared plain TCP with itself")
	}
	if c := r.Control; c == nil {
		t.Error("no control")
	} else if len(c.Blind) > 0 {
		t.Errorf("the control does what plain TCP does in rows that must tell them apart: %s", strings.Join(c.Blind, "; "))
	}
}

// TestOneFileACase: the registry holds what the files define.
func TestOneFileACase(t *testing.T) {
	files, err := filepath.Glob("case_*.go")
	if err != nil {
		t.Fatal(err)
	}
	if got := len(conformance.Names()); got != len(files) {
		t.Errorf("%d cases in the registry, %d files", got, len(files))
	}
	seen := map[string]bool{}
	for _, n := range conformance.Names() {
		if seen[n] {
			t.Errorf("two cases are called %q", n)
		}
		seen[n] = true
	}
}

// TestRefusals: what cannot be run is said.
func TestRefusals(t *testing.T) {
	for name, o := range map[string]conformance.Options{
		"no such case":  {Only: "no such case"},
		"no such place": {Places: []string{"elsewhere"}},
	} {
		if _, err := conformance.Run(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	need(t)
	broken := errors.New("no acceleration today")
	_, err := conformance.Run(t.Context(), conformance.Options{
		Only: "dontwait", Places: []string{conformance.PlaceLoopback},
		Session: func() (conformance.Session, error) { return nil, broken },
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
}

// TestGivenUp: sessions that give a guarantee up must fail its cases, or the
// accelerated rows could not.
func TestGivenUp(t *testing.T) {
	need(t)
	for _, c := range []struct {
		only string
		opts node.SessionOptions
	}{
		{"signal-restart", node.SessionOptions{Accept: []string{"G4"}}},
		{"splice-reader", node.SessionOptions{Accept: []string{"G5"}}},
		{"close-unread", node.SessionOptions{Accept: []string{"G6"}}},
		{"back-pressure", node.SessionOptions{MaxQueue: 1 << 30}},
	} {
		t.Run(c.only, func(t *testing.T) {
			r, err := conformance.Run(t.Context(), conformance.Options{
				Only: c.only, Places: []string{conformance.PlaceLoopback},
				Session: func() (conformance.Session, error) {
					s, err := node.NewSession(c.opts)
					if err != nil {
						return nil, err
					}
					return s, nil
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			if r.Failed() == 0 {
				t.Errorf("no failure with %+v: the suite cannot see one", c.opts)
			}
			for _, row := range r.Rows {
				if row.Verdict == conformance.Fail {
					t.Logf("as it should, %s, %s: %s", row.Case, row.Mode, row.Reason)
				}
			}
		})
	}
}
