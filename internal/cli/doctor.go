// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/conformance"
	"github.com/shuntnet/shunt/internal/kernel"
)

// report is what doctor prints with -o json and yaml.
type report struct {
	Pass   int            `json:"pass" yaml:"pass"`
	Warn   int            `json:"warn" yaml:"warn"`
	Fail   int            `json:"fail" yaml:"fail"`
	Checks []kernel.Check `json:"checks" yaml:"checks"`
}

func newReport(checks []kernel.Check) report {
	r := report{Checks: checks}
	for _, c := range checks {
		switch c.Status {
		case kernel.Pass:
			r.Pass++
		case kernel.Warn:
			r.Warn++
		case kernel.Fail:
			r.Fail++
		}
	}
	return r
}

func newDoctor() *cobra.Command {
	var (
		format string
		suite  bool
		o      conformance.Options
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show what this kernel and machine can do",
		Long: "Asks this kernel and machine for everything that shunt uses, by trying it, and prints PASS, WARN or FAIL\n" +
			"with what to do about it. Changes nothing. Exits with 1 if accel cannot run here.\n\n" +
			"With --conformance it runs programs on plain and on accelerated sockets instead, in cgroups and network\n" +
			"namespaces that it makes and removes, and compares what they see. Takes about a minute; exits with 1 if\n" +
			"something differs that docs/accel.md does not name.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil { // before the time that probing takes
				return err
			}
			if suite {
				return conform(cmd, o, format)
			}
			r := newReport(kernel.Probe())
			out := cmd.OutOrStdout()
			var err error
			if format == "table" {
				err = r.table(out)
			} else {
				err = print(out, format, r, r.Checks, nil)
			}
			if err != nil {
				return fmt.Errorf("print the report: %w", err)
			}
			if r.Fail > 0 {
				return &ExitError{Code: 1}
			}
			return nil
		},
	}
	addFormat(cmd, &format)
	cmd.Flags().BoolVar(&suite, "conformance", false, "compare accelerated sockets with plain ones (root)")
	cmd.Flags().StringVar(&o.Only, "cases", "", "with --conformance: only cases whose name contains this, or of this guarantee")
	cmd.Flags().IntVar(&o.Connections, "connections", 2000, "with --conformance: how many the loops of short connections open")
	return cmd
}

func (r report) table(out io.Writer) error {
	width := 0
	for _, c := range r.Checks {
		width = max(width, len(c.Name))
	}
	colour := useColour(out)
	for _, c := range r.Checks {
		status := string(c.Status)
		if colour {
			status = map[kernel.Status]string{kernel.Pass: "\x1b[32m", kernel.Warn: "\x1b[33m", kernel.Fail: "\x1b[31m"}[c.Status] + status + "\x1b[0m"
		}
		if _, err := fmt.Fprintf(out, "%s  %-*s  %s\n", status, width, c.Name, c.Detail); err != nil {
			return err
		}
		if c.Fix != "" {
			if _, err := fmt.Fprintf(out, "      fix: %s\n", c.Fix); err != nil {
				return err
			}
		}
	}
	verdict := "accel can run here"
	if r.Fail > 0 {
		verdict = "accel cannot run here as it is"
	}
	_, err := fmt.Fprintf(out, "%d pass, %d warn, %d fail: %s\n", r.Pass, r.Warn, r.Fail, verdict)
	return err
}

// useColour: only people at a terminal who did not say no (https://no-color.org).
func useColour(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
