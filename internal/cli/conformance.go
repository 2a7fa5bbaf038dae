// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/bench"
	"github.com/shuntnet/shunt/conformance"
	"github.com/shuntnet/shunt/internal/node"
)

// conform runs the conformance suite for doctor.
func conform(cmd *cobra.Command, o conformance.Options, format string) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	o.Session = func() (conformance.Session, error) {
		s, err := node.NewSession(node.SessionOptions{})
		if err != nil { // not a Session that holds nothing
			return nil, err
		}
		return s, nil
	}
	show, done := progressLine(cmd.ErrOrStderr())
	defer done()
	if show != nil {
		o.Progress = func(p conformance.Progress) { show(bench.Progress(p)) }
	}
	r, err := conformance.Run(ctx, o)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("conformance: %w", err)
	}
	print := r.WriteTable
	if format == "json" {
		print = r.WriteJSON
	}
	if err := print(cmd.OutOrStdout()); err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	if r.Failed() > 0 {
		return &ExitError{Code: 1}
	}
	return nil
}

// newConformancePeer is a process of the suite, started by the suite itself.
func newConformancePeer() *cobra.Command {
	return &cobra.Command{
		Use:                conformance.PeerCommand + " ROLE",
		Short:              "A process of the conformance suite",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return conformance.PeerMain(args, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}
