// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// doctor is what is used of `shunt doctor -o json`.
type doctor struct {
	Fail   int
	Checks []struct{ Name, Status, Detail, Fix string }
}

// refusals are the reasons why accel cannot run, by doctor.
func (d doctor) refusals() []string {
	var all []string
	for _, c := range d.Checks {
		if c.Status == "FAIL" {
			all = append(all, c.Name+": "+c.Detail)
		}
	}
	return all
}

// verdict is what the exit status of doctor tells.
func (d *doctor) verdict() string {
	switch {
	case d == nil:
		return "unknown"
	case d.Fail > 0:
		return "is refused"
	}
	return "runs"
}

// report of one kernel.
type report struct {
	kernel  kernel
	doctor  *doctor // nil if it gave no answer
	results []result
}

func (r report) failed() bool {
	for _, s := range r.results {
		if s.verdict == fail {
			return true
		}
	}
	return false
}

func parseDoctor(out []byte) (*doctor, error) {
	d := &doctor{}
	if err := json.Unmarshal(out, d); err != nil {
		return nil, fmt.Errorf("read what doctor said: %w", err)
	}
	if len(d.Checks) == 0 {
		return nil, fmt.Errorf("doctor checked nothing")
	}
	return d, nil
}

// cell makes text fit a table.
var cell = strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;")

const preface = `# Kernels

The tests run on other kernels in virtual machines: Debian's cloud kernels, in QEMU without hardware virtualisation.
A kernel either keeps what [accel.md](accel.md) promises, or shunt refuses to run there and says why; there is nothing
between. This page is what this command printed last:

` + "```" + `
%s
` + "```" + `

It downloads the newest kernel of each series from the Debian mirror of the machine's apt sources (to the user's cache;
apt itself is not changed), boots one guest per suite, two at a time, and exits with 1 if anything failed.
Emulated CPUs are slow: these are tests of behaviour, no figure of speed comes from them.

`

// markdown is docs/kernels.md.
func markdown(reports []report, run []suite, again string) string {
	var b strings.Builder
	fmt.Fprintf(&b, preface, again)
	b.WriteString("## Suites\n| series | kernel | Debian's version | accel |")
	for _, s := range run {
		fmt.Fprintf(&b, " %s |", s.name)
	}
	b.WriteString("\n|---|---|---|---|" + strings.Repeat("---|", len(run)) + "\n")
	for _, r := range reports {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |", r.kernel.series, r.kernel.release, r.kernel.pkg.version, r.doctor.verdict())
		for _, s := range r.results {
			fmt.Fprintf(&b, " %s |", s.verdict)
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for _, s := range run {
		command := strings.TrimSpace(s.env + " go test " + strings.Join(append([]string{s.pkg}, s.args...), " "))
		fmt.Fprintf(&b, "- `%s`: `%s`%s\n", s.name, command, map[bool]string{true: ", where doctor lets accel run"}[s.accelFrom != ""])
	}
	for _, r := range reports {
		fmt.Fprintf(&b, "\n## %s: %s\n", r.kernel.series, r.kernel.release)
		if r.doctor == nil {
			b.WriteString("`shunt doctor` gave no answer.\n")
		} else {
			fmt.Fprintf(&b, "accel %s. What `shunt doctor` says about the guards, and all that it finds missing:\n\n", r.doctor.verdict())
			b.WriteString("| doctor | | |\n|---|---|---|\n")
			for _, c := range r.doctor.Checks {
				if c.Status != "PASS" || strings.HasPrefix(c.Name, "guard ") {
					fmt.Fprintf(&b, "| %s | %s | %s |\n", c.Status, cell.Replace(c.Name), cell.Replace(c.Detail))
				}
			}
		}
		b.WriteString("\n| suite | | |\n|---|---|---|\n")
		for _, s := range r.results {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", s.suite, s.verdict, cell.Replace(s.reason))
		}
	}
	return b.String()
}
