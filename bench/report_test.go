// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func samples(rates ...float64) []Sample {
	var out []Sample
	for _, rate := range rates {
		s := Sample{Rate: rate, Verified: 1}
		if rate == 0 {
			s = Sample{Error: "recv: EAGAIN"}
		}
		out = append(out, s)
	}
	return out
}

func cell(workload string, size int, plain, accel []Sample) Cell {
	c := Cell{Place: PlaceLoopback, CPUs: CPUsOne, Workload: workload, Size: size,
		Paths: []Path{{Mode: ModePlain, Samples: plain}, {Mode: ModeAccel, Samples: accel}}}
	c.summarize()
	return c
}

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   *Spread
	}{
		{nil, nil},
		{[]float64{3}, &Spread{3, 3, 3}},
		{[]float64{9, 1, 2}, &Spread{2, 1, 9}},
		{[]float64{4, 1, 2, 9}, &Spread{3, 1, 9}},
	} {
		if diff := cmp.Diff(test.want, spreadOf(test.values)); diff != "" {
			t.Errorf("%v: %s", test.values, diff)
		}
	}
}

// The machine is twice as slow in the second round: the ratio does not notice.
func TestRatioIsTakenWithinARound(t *testing.T) {
	c := cell(WorkloadRR, 64, samples(100, 50, 100), samples(150, 75, 150))
	if diff := cmp.Diff(&Spread{1.5, 1.5, 1.5}, c.path(ModeAccel).ToPlain); diff != "" {
		t.Error(diff)
	}
}

func TestFailedSamplesDoNotCount(t *testing.T) {
	c := cell(WorkloadRR, 64, samples(100, 0, 100), samples(0, 75, 150))
	if diff := cmp.Diff(&Spread{1.5, 1.5, 1.5}, c.path(ModeAccel).ToPlain); diff != "" {
		t.Error(diff)
	}
	if got := c.path(ModeAccel).format(WorkloadRR); !strings.HasSuffix(got, "!") {
		t.Errorf("a failure is not marked: %s", got)
	}
	c = cell(WorkloadRR, 64, samples(100), samples(0))
	if got := c.path(ModeAccel).format(WorkloadRR); got != "failed" {
		t.Errorf("got %q, want failed", got)
	}
}

func TestFormat(t *testing.T) {
	for want, got := range map[string]string{
		"73.4 k/s":  formatRate(WorkloadRR, 73_412),
		"1.00 k/s":  formatRate(WorkloadRR, 999.9),
		"812 MB/s":  formatRate(WorkloadStream, 812.4e6),
		"12.3 GB/s": formatRate(WorkloadStream, 12.34e9),
		"64 B":      formatSize(64),
		"100003 B":  formatSize(100_003),
		"16 KiB":    formatSize(16 << 10),
		"1 MiB":     formatSize(1 << 20),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTables(t *testing.T) {
	r := Report{Kernel: "6.18.0", Arch: "amd64", CPUs: 2, Rounds: 3, Seconds: 0.4, Started: time.Unix(0, 0), Cells: []Cell{
		cell(WorkloadRR, 64, samples(50e3, 50e3, 40e3), samples(75e3, 80e3, 60e3)),
		cell(WorkloadStream, 4096, samples(1e9, 1e9, 1e9), samples(7e8, 7.2e8, 6.8e8)),
		cell(WorkloadStream, 65536, samples(2e9, 2e9, 2e9), samples(2e9, 2.02e9, 1.98e9)),
	}}
	var table, demo bytes.Buffer
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteDemo(&demo); err != nil {
		t.Fatal(err)
	}
	wantTable := `Linux 6.18.0 amd64, 2 CPUs; epoll, non-blocking calls; 3 samples of 400ms each; medians, ratio to plain (min–max)

loopback, client and server on one CPU
               plain      accel
rr 64 B        50.0 k/s   75.0 k/s 1.50× (1.50–1.60)
stream 4 KiB   1.00 GB/s  700 MB/s 0.70× (0.68–0.72)
stream 64 KiB  2.00 GB/s  2.00 GB/s 1.00× (0.99–1.01)
`
	if diff := cmp.Diff(wantTable, table.String()); diff != "" {
		t.Error(diff)
	}
	wantDemo := `                            plain TCP  accelerated   ratio
request/response, 64 B       50.0 k/s     75.0 k/s   1.50×
stream, writes of 4 KiB     1.00 GB/s     700 MB/s   0.70×
stream, writes of 64 KiB    2.00 GB/s    2.00 GB/s   1.00×

Medians of 3 rounds in turn, client and server on one CPU, loopback, Linux 6.18.0.
Compared with plain TCP, the accelerated path was faster for requests of 64 B (1.50×); about equal for streams of writes of 64 KiB (1.00×); slower for streams of writes of 4 KiB (0.70×).
`
	if diff := cmp.Diff(wantDemo, demo.String()); diff != "" {
		t.Error(diff)
	}
}

func TestGoals(t *testing.T) {
	r := Report{Cells: []Cell{
		cell(WorkloadRR, 64, samples(100), samples(149)),
		cell(WorkloadRR, 1024, samples(100), samples(97)),
		cell(WorkloadStream, 64, samples(100), samples(96)),
		cell(WorkloadBidir, 64, samples(100), samples(0)),
		cell(WorkloadSetup, 64, samples(100), samples(95)),
		cell(WorkloadRemote, 64, samples(100), samples(98)),
		{Place: PlaceLoopback, Paths: []Path{{Mode: ModePlain}}}, // nothing to compare
	}}
	var got bytes.Buffer
	if err := r.WriteGoals(&got); err != nil {
		t.Fatal(err)
	}
	want := `
4 of 6 cells miss their goal
  loopback, one CPU, rr 64 B: 1.49× (1.49–1.49), want 1.50×
  loopback, one CPU, stream 64 B: 0.96× (0.96–0.96), want 0.97×
  loopback, one CPU, bidir 64 B: every sample failed, want 0.97×
  loopback, one CPU, remote 64 B: 0.98× (0.98–0.98), want 0.99×
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
	c := Cell{Place: PlaceVeth, CPUs: CPUsOne, Workload: WorkloadRR, Size: 64}
	if c.Goal() != goalVeth {
		t.Errorf("veth has the goal %v", c.Goal())
	}
}

func TestDemoRefusesFailedSamples(t *testing.T) {
	r := Report{Cells: []Cell{cell(WorkloadRR, 64, samples(1, 1), samples(1, 0))}}
	if err := r.WriteDemo(&bytes.Buffer{}); err == nil {
		t.Error("a failed sample was shown as a result")
	}
}
