// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shuntnet/shunt/internal/kernel"
)

// TestMain lets the bench start this test binary as its peers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == PeerCommand {
		if err := PeerMain(os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// requireRoot skips, unless this machine is one where nothing may be skipped.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("SHUNT_REQUIRE_ALL") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root to make cgroups, namespaces and to load BPF")
}

func TestRunMovesVerifiedBytes(t *testing.T) {
	requireRoot(t)
	for _, blocking := range []bool{false, true} {
		t.Run(fmt.Sprintf("blocking=%v", blocking), func(t *testing.T) {
			o := Options{
				Modes:    []string{ModePlain, ModeUnix, ModeNaive},
				Places:   []string{PlaceLoopback, PlaceVeth},
				CPUs:     []string{CPUsOne},
				RR:       []int{64, 16384},
				Streams:  []int{4096, 100_003},
				Remote:   []int{64},
				Rounds:   1,
				Duration: 100 * time.Millisecond,
				Warmup:   10 * time.Millisecond,
				Blocking: blocking,
			}
			want := 2 * 5
			if !blocking { // one event loop at either end
				o.Bidir, o.Many, o.Setup = []int{64, 100_003}, []int{64, 100_003}, []int{64}
				want += 2 * 5
			}
			report, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Cells) != want {
				t.Fatalf("%d cells, want %d", len(report.Cells), want)
			}
			for i := range report.Cells {
				c := &report.Cells[i]
				for _, p := range c.Paths {
					if len(p.Samples) != 1 {
						t.Fatalf("%v, %s: %d samples, want 1", c, p.Mode, len(p.Samples))
					}
					// The control may fail; the other paths may not.
					s := p.Samples[0]
					if p.Mode == ModeNaive && s.Error != "" {
						t.Logf("%v, naive: %s", c, s.Error)
						continue
					}
					if s.Error != "" || s.Verified == 0 || s.Rate <= 0 {
						t.Errorf("%v, %s: %+v", c, p.Mode, s)
					}
				}
			}
		})
	}
}

func TestRunLeavesNoCgroup(t *testing.T) {
	requireRoot(t)
	o := DefaultOptions()
	o.Modes, o.Places, o.CPUs = []string{ModeNaive}, []string{PlaceLoopback}, []string{CPUsOne}
	o.RR, o.Streams, o.Rounds, o.Duration = []int{64}, nil, 1, 10*time.Millisecond
	var dir string
	o.Progress = func(p Progress) { dir = p.Next }
	before := benchCgroups(t)
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if dir == "" {
		t.Error("no progress was reported")
	}
	if after := benchCgroups(t); !slices.Equal(before, after) {
		t.Errorf("cgroups before %v, after %v", before, after)
	}
}

func TestCheckRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Options){
		"unknown mode":   func(o *Options) { o.Modes = []string{"fast"} },
		"unknown place":  func(o *Options) { o.Places = []string{"moon"} },
		"no CPU layout":  func(o *Options) { o.CPUs = nil },
		"no sizes":       func(o *Options) { o.RR, o.Streams = nil, nil },
		"tiny message":   func(o *Options) { o.RR = []int{8} },
		"no rounds":      func(o *Options) { o.Rounds = 0 },
		"no window":      func(o *Options) { o.Duration = 0 },
		"no accelerator": func(o *Options) { o.Accel = nil },
		"no such cell":   func(o *Options) { o.Cells = "moon" },
		"blocking loops": func(o *Options) { o.Blocking, o.Many = true, []int{64} },
	} {
		o := DefaultOptions()
		o.Accel = func() (Accelerated, error) { return nil, nil }
		if err := o.Check(); err != nil {
			t.Fatalf("defaults: %v", err)
		}
		if spoil(&o); o.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCellsFilter(t *testing.T) {
	o := GoalOptions()
	all := len(o.cells(PlaceLoopback))
	if want := 2 * (4*7 + 2); all != want {
		t.Fatalf("%d cells of the goals, want %d", all, want)
	}
	o.Cells = "one CPU, bidir"
	for _, c := range o.cells(PlaceLoopback) {
		if c.CPUs != CPUsOne || c.Workload != WorkloadBidir {
			t.Errorf("%v is not called so", &c)
		}
	}
	if n := len(o.cells(PlaceLoopback)); n != 7 {
		t.Errorf("%d cells left, want 7", n)
	}
}

func benchCgroups(t *testing.T) []string {
	t.Helper()
	own, err := kernel.OwnCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob(filepath.Join(own, leftPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}
