// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Verdict on a case in one place and mode.
type Verdict string

// The verdicts.
const (
	Pass  Verdict = "PASS"  // as plain TCP, accelerated
	Left  Verdict = "LEFT"  // as plain TCP, because it was plain TCP, or became it
	Limit Verdict = "LIMIT" // differs, as limits.go says
	Fail  Verdict = "FAIL"  // differs
)

// Row is the outcome of a case.
type Row struct {
	Case       string      `json:"case"`
	Guarantee  string      `json:"guarantee"`
	Doc        string      `json:"doc"`
	Mode       string      `json:"mode"`
	Place      string      `json:"place"`
	Verdict    Verdict     `json:"verdict"`
	Reason     string      `json:"reason,omitempty"` // why it left, which limit, or the first difference
	Joined     uint64      `json:"joined"`           // pairs
	Redirected uint64      `json:"redirected_bytes"`
	Plain      Observation `json:"plain"`
	Seen       Observation `json:"seen,omitempty"` // where it differs from plain
}

// Sum of a guarantee's rows, the control's left out.
type Sum struct {
	Guarantee string `json:"guarantee"`
	What      string `json:"what"`
	Pass      int    `json:"pass"`
	Left      int    `json:"left"`
	Limit     int    `json:"limit"`
	Fail      int    `json:"fail"`
}

// Control is how the unguarded control did: it must fail where Must says.
type Control struct {
	Fail  int      `json:"fail"`
	Pass  int      `json:"pass"`
	Must  int      `json:"must"`            // rows in which it must fail, or the case could not
	Blind []string `json:"blind,omitempty"` // of these, the rows in which it did not
}

// Report of a run.
type Report struct {
	Guarantees []Sum    `json:"guarantees"`
	Control    *Control `json:"control,omitempty"`
	Rows       []Row    `json:"rows"`
}

var guaranteeNames = map[string]string{
	"G1": "order", "G2": "the right peer", "G3": "bounded memory", "G4": "blocking calls",
	"G5": "every way of reading", "G6": "the end is right", "G7": "never slower", "G9": "the agent may die",
}

func judge(places []string, todo []order, results map[string][]result) *Report {
	r := &Report{}
	sums := map[string]*Sum{}
	for i, o := range todo {
		c, _ := find(o.Case)
		sum := sums[c.Guarantee]
		if sum == nil {
			sum = &Sum{Guarantee: c.Guarantee, What: guaranteeNames[c.Guarantee]}
			sums[c.Guarantee] = sum
		}
		for _, place := range places {
			base := plainLoopback
			if place == PlaceVeth {
				base = plainVeth
			}
			row := judgeRow(c, o.Mode, place, results[base][i], results[place][i])
			r.Rows = append(r.Rows, row)
			if place == PlaceControl {
				r.countControl(c, o.Mode, row)
				continue
			}
			switch row.Verdict {
			case Pass:
				sum.Pass++
			case Left:
				sum.Left++
			case Limit:
				sum.Limit++
			case Fail:
				sum.Fail++
			}
		}
	}
	for _, s := range sums {
		r.Guarantees = append(r.Guarantees, *s)
	}
	slices.SortFunc(r.Guarantees, func(a, b Sum) int { return strings.Compare(a.Guarantee, b.Guarantee) })
	return r
}

func judgeRow(c Case, m Mode, place string, plain, got result) Row {
	row := Row{
		Case: c.Name, Guarantee: c.Guarantee, Doc: c.Doc, Mode: m.String(), Place: place,
		Joined: got.joined, Redirected: got.moved, Plain: plain.seen,
	}
	if bad := unusable(plain.seen); bad != "" {
		row.Verdict, row.Reason = Fail, "plain TCP itself: "+bad
		row.Seen = got.seen
		return row
	}
	if !plain.seen.equal(got.seen) {
		row.Seen = got.seen
		row.Verdict, row.Reason = Fail, plain.seen.difference(got.seen)
		if l, ok := limitOf(c.Name, m); ok && place != PlaceControl && l.covers(plain.seen, got.seen) {
			row.Verdict, row.Reason = Limit, l.Reason
		}
		return row
	}
	row.Verdict = Pass
	if got.reason != "" && place != PlaceControl {
		row.Verdict, row.Reason = Left, got.reason
	}
	return row
}

// unusable says why an observation is none to compare with.
func unusable(o Observation) string {
	if len(o) == 0 {
		return "nothing was seen"
	}
	last := o[len(o)-1]
	if last == hang || strings.HasPrefix(last, broken) || strings.HasPrefix(last, "the process died") {
		return last
	}
	return ""
}

func (r *Report) countControl(c Case, m Mode, row Row) {
	if r.Control == nil {
		r.Control = &Control{}
	}
	if row.Verdict == Fail {
		r.Control.Fail++
	} else {
		r.Control.Pass++
	}
	if c.Control&m != 0 {
		r.Control.Must++
		if row.Verdict != Fail {
			r.Control.Blind = append(r.Control.Blind, fmt.Sprintf("%s, %v", c.Name, m))
		}
	}
}

// Failed counts the rows that differ from plain TCP, limits and the control left out.
func (r *Report) Failed() int {
	n := 0
	for _, s := range r.Guarantees {
		n += s.Fail
	}
	return n
}

// WriteJSON prints everything.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteTable prints the case rows, then the sums.
func (r *Report) WriteTable(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	p := func(format string, args ...any) { fmt.Fprintf(w, format, args...) } //nolint:errcheck // Flush reports it
	p("GUARANTEE\tCASE\tMODE\tWHERE\tVERDICT\tWHY\n")
	for _, row := range r.Rows {
		if row.Place == PlaceControl {
			continue
		}
		p("%s\t%s\t%s\t%s\t%s\t%s\n", row.Guarantee, row.Case, row.Mode, row.Place, row.Verdict, row.Reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	p("\nGUARANTEE\t\tPASS\tLEFT\tLIMIT\tFAIL\n")
	for _, s := range r.Guarantees {
		p("%s\t%s\t%d\t%d\t%d\t%d\n", s.Guarantee, s.What, s.Pass, s.Left, s.Limit, s.Fail)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if c := r.Control; c != nil {
		p("\nThe unguarded control differs from plain TCP in %d of %d rows", c.Fail, c.Fail+c.Pass)
		if len(c.Blind) > 0 {
			p("; it should also in: %s", strings.Join(c.Blind, "; "))
		}
		p(".\n")
	}
	p("PASS: as plain TCP, accelerated. LEFT: as plain TCP, because it was plain TCP. LIMIT: differs, and docs/accel.md says so. FAIL: differs.\n")
	return w.Flush()
}
