// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/node"
)

func newUnload() *cobra.Command {
	var (
		opts    node.UnloadOptions
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "unload",
		Short: "Take the agent's data path out, draining first",
		Long: `Stops joining, brings every connection back to plain TCP without losing a byte,
and removes everything once the last one is back. A connection whose reader does
not read keeps its place until it does; what is waited for goes to stderr. After
the timeout nothing new joins, the rest stays as it is, and the exit status is 1.

The agent must have ended. --force does not wait: connections with bytes that
were not read yet lose these bytes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			stderr := cmd.ErrOrStderr()
			opts.Waiting = func(left []accel.Remaining) {
				for _, r := range left {
					if n := len(r.Unread); n > 0 {
						fmt.Fprintf(stderr, "shunt: waiting for %d sockets with bytes that were not read yet (cookies %v)\n", n, r.Unread)
					}
					if n := len(r.Unpaired); n > 0 {
						fmt.Fprintf(stderr, "shunt: waiting for %d sockets whose handshake is not over (cookies %v)\n", n, r.Unpaired)
					}
				}
			}
			removed, err := node.Unload(ctx, opts)
			switch {
			case errors.Is(err, node.ErrAgentRuns):
				return fmt.Errorf("%w; end it first (systemctl stop shunt)", err)
			case errors.Is(err, node.ErrBusy):
				return fmt.Errorf("%w; they go on, nothing new joins; call unload again, or with --force", err)
			case err != nil:
				return fmt.Errorf("unload: %w", err)
			}
			if removed > 0 {
				fmt.Fprintf(stderr, "shunt: %d sockets were joined; bytes that they had not read yet are lost\n", removed)
			}
			fmt.Fprintln(stderr, "shunt: the data path is out")
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for connections; 0 is for ever")
	cmd.Flags().BoolVar(&opts.Force, "force", false, "remove at once; connections may lose bytes that they have not read")
	cmd.Flags().StringVar(&opts.PinRoot, "pin-root", "", "as of the agent")
	return cmd
}
