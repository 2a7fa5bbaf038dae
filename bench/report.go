// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Report is the outcome of a run. Rates are round trips per second, connections
// per second for setup, and bytes per second, counted at the receiver, for
// streams; bidir counts both directions.
type Report struct {
	Kernel   string    `json:"kernel"` // uname -r
	Arch     string    `json:"arch"`
	CPUs     int       `json:"cpus"` // those this process may run on
	Started  time.Time `json:"started"`
	Blocking bool      `json:"blocking"`
	Rounds   int       `json:"rounds"`
	Seconds  float64   `json:"sample_seconds"` // window of a sample
	Cells    []Cell    `json:"cells"`
}

// Cell is one workload at one place.
type Cell struct {
	Place    string `json:"place"`
	CPUs     string `json:"cpus"`
	Workload string `json:"workload"`
	Size     int    `json:"size"` // bytes per message
	Paths    []Path `json:"paths"`
}

// Path is one mode in a cell.
type Path struct {
	Mode    string   `json:"mode"`
	Samples []Sample `json:"samples"`            // in the order of the rounds
	Rate    *Spread  `json:"rate,omitempty"`     // of the samples without an error
	ToPlain *Spread  `json:"to_plain,omitempty"` // of the ratios to the plain sample of the same round
}

// Sample is one measurement.
type Sample struct {
	Rate     float64 `json:"rate"`
	Verified uint64  `json:"verified_bytes"`
	Error    string  `json:"error,omitempty"` // the path failed: the rate is void
}

// Spread sums up a few values.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func newReport(o Options, cpus []int) *Report {
	r := &Report{
		Arch:     runtime.GOARCH,
		CPUs:     len(cpus),
		Started:  time.Now().UTC().Truncate(time.Second),
		Blocking: o.Blocking,
		Rounds:   o.Rounds,
		Seconds:  o.Duration.Seconds(),
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		r.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	return r
}

func spreadOf(values []float64) *Spread {
	if len(values) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	median := sorted[half]
	if len(sorted)%2 == 0 {
		median = (sorted[half-1] + sorted[half]) / 2
	}
	return &Spread{Median: median, Min: sorted[0], Max: sorted[len(sorted)-1]}
}

// summarize fills in what follows from the samples.
func (c *Cell) summarize() {
	plain := c.path(ModePlain)
	for i := range c.Paths {
		p := &c.Paths[i]
		var rates, ratios []float64
		for round, s := range p.Samples {
			if s.Error != "" {
				continue
			}
			rates = append(rates, s.Rate)
			if plain != nil && plain != p && plain.Samples[round].Error == "" {
				ratios = append(ratios, s.Rate/plain.Samples[round].Rate)
			}
		}
		p.Rate, p.ToPlain = spreadOf(rates), spreadOf(ratios)
	}
}

func (c *Cell) path(mode string) *Path {
	for i := range c.Paths {
		if c.Paths[i].Mode == mode {
			return &c.Paths[i]
		}
	}
	return nil
}

func (c *Cell) String() string {
	return fmt.Sprintf("%s, %s CPU, %s %s", c.Place, c.CPUs, c.Workload, formatSize(c.Size))
}

// failures counts the samples of a path that have an error, and returns the first as one line.
func (p *Path) failures() (n int, first string) {
	for _, s := range p.Samples {
		if s.Error == "" {
			continue
		}
		if n++; n == 1 {
			first = strings.ReplaceAll(s.Error, "\n", "; ")
		}
	}
	return n, first
}

// WriteTable prints one table per place and CPU layout: medians, and the ratio
// to plain with its spread (min–max over the rounds).
func (r *Report) WriteTable(w io.Writer) error {
	calls := "epoll, non-blocking"
	if r.Blocking {
		calls = "blocking"
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "Linux %s %s, %d CPUs; %s calls; %d samples of %v each; medians, ratio to plain (min–max)\n",
		r.Kernel, r.Arch, r.CPUs, calls, r.Rounds, time.Duration(r.Seconds*float64(time.Second)))
	var notes []string
	group := ""
	for i := range r.Cells {
		c := &r.Cells[i]
		if title := c.title(); title != group {
			group = title
			fmt.Fprintf(t, "\n%s\n", title)
			for _, p := range c.Paths {
				fmt.Fprintf(t, "\t%s", p.Mode)
			}
			fmt.Fprintln(t)
		}
		fmt.Fprintf(t, "%s %s", c.Workload, formatSize(c.Size))
		for j := range c.Paths {
			p := &c.Paths[j]
			fmt.Fprintf(t, "\t%s", p.format(c.Workload))
			if n, first := p.failures(); n > 0 {
				notes = append(notes, fmt.Sprintf("%v, %s: %d of %d samples failed: %s",
					c, p.Mode, n, len(p.Samples), first))
			}
		}
		fmt.Fprintln(t)
	}
	if len(notes) > 0 {
		fmt.Fprintf(t, "\n%s\n", strings.Join(notes, "\n"))
	}
	return t.Flush()
}

// Goals: the least median ratio to plain TCP in a cell.
const (
	goalAny      = 0.97 // never slower
	goalSetup    = 0.95
	goalRemote   = 0.99 // others pay next to nothing
	goalLoopback = 1.5  // the smallest request/response, on one CPU
	goalVeth     = 1.8
	goalSize     = 64 // bytes
)

// Goal is the least median ratio to plain TCP that accelerated TCP is to have here.
func (c *Cell) Goal() float64 {
	switch {
	case c.Workload == WorkloadSetup:
		return goalSetup
	case c.Workload == WorkloadRemote:
		return goalRemote
	case c.Workload == WorkloadRR && c.Size == goalSize && c.CPUs == CPUsOne && c.Place == PlaceLoopback:
		return goalLoopback
	case c.Workload == WorkloadRR && c.Size == goalSize && c.CPUs == CPUsOne:
		return goalVeth
	}
	return goalAny
}

// WriteGoals says which cells miss their goal. It prints nothing if plain and
// accelerated TCP were not both measured.
func (r *Report) WriteGoals(w io.Writer) error {
	var missed []string
	judged := 0
	for i := range r.Cells {
		c := &r.Cells[i]
		accel, plain := c.path(ModeAccel), c.path(ModePlain)
		if accel == nil || plain == nil {
			continue
		}
		judged++
		if accel.ToPlain == nil {
			missed = append(missed, fmt.Sprintf("  %v: every sample failed, want %.2f×", c, c.Goal()))
		} else if ratio := accel.ToPlain; ratio.Median < c.Goal() {
			missed = append(missed, fmt.Sprintf("  %v: %.2f× (%.2f–%.2f), want %.2f×", c, ratio.Median, ratio.Min, ratio.Max, c.Goal()))
		}
	}
	if judged == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\n%d of %d cells miss their goal\n", len(missed), judged)
	for _, m := range missed {
		if err == nil {
			_, err = fmt.Fprintln(w, m)
		}
	}
	return err
}

func (c *Cell) title() string {
	title := "loopback"
	if c.Place == PlaceVeth {
		title = "two namespaces joined by veth"
	}
	if c.CPUs == CPUsOne {
		return title + ", client and server on one CPU"
	}
	return title + ", client and server on two CPUs"
}

func (p *Path) format(workload string) string {
	if p.Rate == nil {
		return "failed"
	}
	s := formatRate(workload, p.Rate.Median)
	if p.ToPlain != nil {
		s += fmt.Sprintf(" %.2f× (%.2f–%.2f)", p.ToPlain.Median, p.ToPlain.Min, p.ToPlain.Max)
	}
	if n, _ := p.failures(); n > 0 {
		s += "!"
	}
	return s
}

func formatRate(workload string, rate float64) string {
	unit := "/s"
	if workload == WorkloadStream || workload == WorkloadBidir {
		unit = "B/s"
	}
	for _, prefix := range []string{"", "k", "M"} {
		if rate < 999.5 {
			return formatThree(rate) + " " + prefix + unit
		}
		rate /= 1000
	}
	return formatThree(rate) + " G" + unit
}

// formatThree prints three significant digits.
func formatThree(v float64) string {
	switch {
	case v < 9.995:
		return fmt.Sprintf("%.2f", v)
	case v < 99.95:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func formatSize(bytes int) string {
	switch {
	case bytes >= 1<<20 && bytes%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", bytes>>20)
	case bytes >= 1<<10 && bytes%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
	return fmt.Sprintf("%d B", bytes)
}
