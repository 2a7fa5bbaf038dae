// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// DemoOptions measures plain and accelerated TCP on the loopback interface,
// both ends on one CPU, in about 20 seconds.
func DemoOptions() Options {
	return Options{
		Modes:    []string{ModePlain, ModeAccel},
		Places:   []string{PlaceLoopback},
		CPUs:     []string{CPUsOne},
		RR:       []int{64, 1 << 10, 16 << 10},
		Streams:  []int{4 << 10, 16 << 10, 64 << 10, 256 << 10},
		Rounds:   3,
		Duration: 360 * time.Millisecond,
		Warmup:   50 * time.Millisecond,
	}
}

// WriteDemo prints a report of plain and accelerated samples for someone who
// reads it the first time, and one sentence of what it means.
func (r *Report) WriteDemo(w io.Writer) error {
	const row = "%-25s  %10s  %11s  %6s\n"
	var table strings.Builder
	fmt.Fprintf(&table, row, "", "plain TCP", "accelerated", "ratio")
	for i := range r.Cells {
		c := &r.Cells[i]
		plain, accel := c.path(ModePlain), c.path(ModeAccel)
		if plain == nil || accel == nil {
			return fmt.Errorf("%v: not measured both ways", c)
		}
		for _, p := range []*Path{plain, accel} {
			if n, first := p.failures(); n > 0 {
				return fmt.Errorf("%v, %s: %d of %d samples failed: %s", c, p.Mode, n, len(p.Samples), first)
			}
		}
		fmt.Fprintf(&table, row, c.demoName(), formatRate(c.Workload, plain.Rate.Median),
			formatRate(c.Workload, accel.Rate.Median), fmt.Sprintf("%.2f×", accel.ToPlain.Median))
	}
	_, err := fmt.Fprintf(w, "%s\nMedians of %d rounds in turn, client and server on one CPU, loopback, Linux %s.\n%s\n",
		table.String(), r.Rounds, r.Kernel, r.meaning())
	return err
}

func (c *Cell) demoName() string {
	if c.Workload == WorkloadRR {
		return "request/response, " + formatSize(c.Size)
	}
	return "stream, writes of " + formatSize(c.Size)
}

// noise is how far from 1 a ratio has to be to count as a difference; rounds
// of the same path differ by about as much.
const noise = 0.05

// meaning says in one sentence where the accelerated path was faster, equal and slower.
func (r *Report) meaning() string {
	groups := []struct {
		what  string
		is    func(ratio float64) bool
		parts []string
	}{
		{what: "faster", is: func(ratio float64) bool { return ratio > 1+noise }},
		{what: "about equal", is: func(ratio float64) bool { return ratio >= 1-noise && ratio <= 1+noise }},
		{what: "slower", is: func(ratio float64) bool { return ratio < 1-noise }},
	}
	for i := range groups {
		g := &groups[i]
		for _, workload := range []string{WorkloadRR, WorkloadStream} {
			var sizes []string
			var ratios []float64
			for j := range r.Cells {
				c := &r.Cells[j]
				ratio := c.path(ModeAccel).ToPlain.Median
				if c.Workload == workload && g.is(ratio) {
					sizes = append(sizes, formatSize(c.Size))
					ratios = append(ratios, ratio)
				}
			}
			if len(sizes) == 0 {
				continue
			}
			what := "requests of "
			if workload == WorkloadStream {
				what = "streams of writes of "
			}
			g.parts = append(g.parts, what+list(sizes)+" ("+span(ratios)+")")
		}
	}
	var said []string
	for _, g := range groups {
		if len(g.parts) > 0 {
			said = append(said, g.what+" for "+strings.Join(g.parts, " and "))
		}
	}
	return "Compared with plain TCP, the accelerated path was " + strings.Join(said, "; ") + "."
}

func list(words []string) string {
	last := len(words) - 1
	if last == 0 {
		return words[0]
	}
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

func span(ratios []float64) string {
	low, high := fmt.Sprintf("%.2f", slices.Min(ratios)), fmt.Sprintf("%.2f", slices.Max(ratios))
	if low == high {
		return low + "×"
	}
	return low + "–" + high + "×"
}
