// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: one file per command, which parses and
// prints and leaves the work to the other packages.
package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/config"
)

// version is set by the build: -ldflags "-X …/internal/cli.version=…".
var version = "devel"

// Main runs the command line and returns the exit status.
func Main(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return 0
	}
	status := 1
	var exit *ExitError
	if errors.As(err, &exit) {
		status, err = exit.Code, exit.Err
	}
	var mistakes *config.Error
	switch {
	case errors.As(err, &mistakes): // each with its place
		fmt.Fprintln(os.Stderr, mistakes)
	case err != nil:
		fmt.Fprintf(os.Stderr, "shunt: %v\n", err)
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) { // the reason is at the end of the log
			format := "%-20v\n"
			if debug, _ := root.PersistentFlags().GetBool("debug"); debug {
				format = "%+v\n"
			}
			fmt.Fprintf(os.Stderr, format, ve)
		}
	}
	return status
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "shunt",
		Short:         "A short path for a Linux node's network traffic",
		Long:          "shunt gives a Linux node a short path for its network traffic, in eBPF.\n\nTry it:  shunt demo\nUse it:  shunt run -- COMMAND…",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			level := slog.LevelWarn
			if cmd.Name() == "agent" { // its log is read later
				level = slog.LevelInfo
			}
			if debug, _ := cmd.Flags().GetBool("debug"); debug {
				level = slog.LevelDebug
			}
			slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
		},
	}
	root.PersistentFlags().Bool("debug", false, "log more, and print whole verifier logs")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %q", err, cmd.CommandPath()+" --help")
	})
	root.AddCommand(
		newRun(),
		newDemo(),
		newDoctor(),
		newStatus(),
		newAccel(),
		newExclusions(),
		newBench(),
		newBenchPeer(),
		newVersion(),
		newMan(),
		newCheck(),
		newSchema(),
		newMetrics(),
		newConformancePeer(),
		newTap(),
		newAgent(),
		newApply(),
		newDiff(),
		newUnload(),
	)
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		mustKnow(cmd)
	}
	return root
}

// mustKnow makes a command that only groups others refuse what none of them is
// called; without it cobra prints help and reports success.
func mustKnow(cmd *cobra.Command) {
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
}

func newVersion() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of shunt and of this kernel",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var u unix.Utsname
			if err := unix.Uname(&u); err != nil {
				return fmt.Errorf("ask for the kernel's version: %w", err)
			}
			v := versions{version, runtime.Version(), unix.ByteSliceToString(u.Release[:]), runtime.GOARCH}
			return print(cmd.OutOrStdout(), format, v, []versions{v}, func(w *table) {
				w.row("shunt", v.Shunt)
				w.row("go", v.Go)
				w.row("linux", v.Linux)
				w.row("arch", v.Arch)
			})
		},
	}
	addFormat(cmd, &format)
	return cmd
}

type versions struct {
	Shunt string `json:"shunt" yaml:"shunt"`
	Go    string `json:"go" yaml:"go"`
	Linux string `json:"linux" yaml:"linux"`
	Arch  string `json:"arch" yaml:"arch"`
}

func newMan() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the man pages to DIR",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.InitDefaultCompletionCmd()
			// The same pages at any time: CI compares them.
			root.DisableAutoGenTag = true
			date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
			header := &doc.GenManHeader{Section: "1", Source: "shunt", Manual: "shunt", Date: &date}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("write the man pages: %w", err)
			}
			return nil
		},
	}
}
