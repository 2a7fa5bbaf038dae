// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/bench"
	"github.com/shuntnet/shunt/internal/node"
)

func newBench() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure side by side with the kernel's own path",
	}
	cmd.AddCommand(newBenchAccel())
	return cmd
}

func newBenchAccel() *cobra.Command {
	o := bench.DefaultOptions()
	var format string
	var goals bool
	cmd := &cobra.Command{
		Use:   "accel",
		Short: "Measure plain TCP, accelerated TCP, a unix socket and the unguarded control in turn",
		Long: "Measures plain TCP, accelerated TCP, a unix socket, and a control that redirects everything without a guard\n" +
			"(it loses data elsewhere; here every byte is checked), in turn: A B C D A B C D. Shows medians, and the ratio to\n" +
			"plain TCP within a round; at the end, which cells miss shunt's goals. It takes about six minutes; restrict it\n" +
			"with the flags, or measure every cell that the goals speak of with --goals. Needs root.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "table" && format != "json" {
				return fmt.Errorf("unknown output format %q: use -o table or -o json", format)
			}
			sizes := map[string]*[]int{
				"rr": &o.RR, "streams": &o.Streams, "bidir": &o.Bidir, "many": &o.Many, "setup": &o.Setup, "remote": &o.Remote,
			}
			g := bench.GoalOptions()
			all := map[string][]int{
				"rr": g.RR, "streams": g.Streams, "bidir": g.Bidir, "many": g.Many, "setup": g.Setup, "remote": g.Remote,
			}
			some := false
			for name := range sizes {
				some = some || cmd.Flags().Changed(name)
			}
			for name, s := range sizes {
				switch {
				case cmd.Flags().Changed(name):
				case some: // sizes of some workloads mean: only those
					*s = nil
				case goals:
					*s = all[name]
				}
			}
			if goals && !cmd.Flags().Changed("modes") {
				o.Modes = g.Modes
			}
			report, err := runBench(cmd, o)
			if err != nil {
				return fmt.Errorf("bench: %w", err)
			}
			if format == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetEscapeHTML(false)
				enc.SetIndent("", "  ")
				err = enc.Encode(report)
			} else {
				err = errors.Join(report.WriteTable(cmd.OutOrStdout()), report.WriteGoals(cmd.OutOrStdout()))
			}
			if err != nil {
				return fmt.Errorf("print the report: %w", err)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&format, "output", "o", "table", "output format: table or json")
	flags.StringSliceVar(&o.Modes, "modes", o.Modes, "paths to measure: plain, accel, unix, naive")
	flags.StringSliceVar(&o.Places, "places", o.Places, "where client and server are: loopback, veth")
	flags.StringSliceVar(&o.CPUs, "cpus", o.CPUs, "client and server on one CPU, or on two: one, two")
	flags.IntSliceVar(&o.RR, "rr", o.RR, "message sizes of request/response, bytes; sizes of some workloads mean: only those")
	flags.IntSliceVar(&o.Streams, "streams", o.Streams, "write sizes of streams, bytes")
	flags.IntSliceVar(&o.Bidir, "bidir", nil, "write sizes of streams in both directions at once, bytes")
	flags.IntSliceVar(&o.Many, "many", nil, "message sizes of request/response over 64 connections, bytes")
	flags.IntSliceVar(&o.Setup, "setup", nil, "message sizes, one each way, of connections that are made and closed, bytes")
	flags.IntSliceVar(&o.Remote, "remote", nil, "message sizes of request/response with a server that is not accelerated, bytes")
	flags.BoolVar(&goals, "goals", false, "all cells that the goals speak of: every workload, 64 B to 1 MiB, plain and accelerated only; about a quarter of an hour")
	flags.StringVar(&o.Cells, "cells", "", "only cells with this in their name, such as \"veth, one CPU, rr\"")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "samples of each path")
	flags.DurationVar(&o.Duration, "duration", o.Duration, "length of a sample")
	flags.BoolVar(&o.Blocking, "blocking", false, "blocking calls instead of epoll; accelerated although a signal may then interrupt a read")
	return cmd
}

// newBenchPeer is one end of a measurement, started by the bench itself.
func newBenchPeer() *cobra.Command {
	return &cobra.Command{
		Use:                bench.PeerCommand + " server|client [flags]",
		Short:              "One end of a measurement",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return bench.PeerMain(args, cmd.OutOrStdout())
		},
	}
}

// runBench runs o with shunt's own acceleration, until a signal, with a progress line at a terminal.
func runBench(cmd *cobra.Command, o bench.Options) (*bench.Report, error) {
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	o.Accel = func() (bench.Accelerated, error) {
		var so node.SessionOptions
		if o.Blocking {
			so.Accept = []string{"G4"} // the peers get no signals
		}
		session, err := node.NewSession(so)
		if err != nil {
			return nil, err
		}
		return session, nil
	}
	show, done := progressLine(cmd.ErrOrStderr())
	defer done()
	o.Progress = show
	report, err := bench.Run(ctx, o)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return report, err
}

// progressLine overwrites one line of a terminal; elsewhere it prints nothing.
func progressLine(w io.Writer) (show func(bench.Progress), done func()) {
	f, ok := w.(*os.File)
	if !ok {
		return nil, func() {}
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return nil, func() {}
	}
	show = func(p bench.Progress) {
		const width = 20
		full := width * p.Done / p.Total
		fmt.Fprintf(w, "\r\x1b[K[%s%s] %d/%d %s", strings.Repeat("#", full), strings.Repeat(".", width-full), p.Done, p.Total, p.Next)
	}
	return show, func() { fmt.Fprint(w, "\r\x1b[K") }
}
