// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/node"
)

func newStatus() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is loaded, where, and what it did",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, unread := node.Instances()
			if list == nil {
				list = []node.Instance{}
			}
			err := print(cmd.OutOrStdout(), format, list, list, func(t *table) {
				if len(list) == 0 {
					t.row("nothing is loaded")
					return
				}
				t.row("INSTANCE", "STATE", "CONNECTIONS", "JOINED", "SOCKETS NOW", "SHORT", "STACK", "SPILLED", "CGROUP")
				for _, i := range list {
					state := "running"
					if !i.Owned {
						state = "left behind" // its shunt was killed
					}
					if i.OtherBuild {
						state += ", another build"
					}
					t.row(i.Name, state, i.Stats.Connections, i.Stats.Joined, i.Mapped,
						bytesText(i.Stats.Redirected.Bytes), bytesText(i.Stats.StackTotal().Bytes), bytesText(i.Stats.Spilled().Bytes), i.Cgroup)
				}
			})
			return errors.Join(err, readError(unread))
		},
	}
	addFormat(cmd, &format)
	return cmd
}

// readError is about what could not be read; the rest was printed.
func readError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read what is loaded: %w", err)
}

// accelRow is one line of `shunt accel`.
type accelRow struct {
	Instance   string `json:"instance" yaml:"instance"`
	accel.Conn `yaml:",inline"`
}

func newAccel() *cobra.Command {
	var (
		format string
		follow bool
		during time.Duration
	)
	cmd := &cobra.Command{
		Use:   "accel",
		Short: "List accelerated connections, their path and counters",
		Long: "Lists the sockets that joined, one line for each direction: the path that its last message took\n" +
			"(short, or why not), and what it sent by each path.\n\n" +
			"With --follow, prints a line for each pair that joins and for each that leaves, with the reason, until\n" +
			"it is interrupted.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if follow {
				return followPairs(cmd, format, during)
			}
			if cmd.Flags().Changed("for") {
				return errors.New("--for goes with --follow")
			}
			list, unread := node.Instances()
			rows := []accelRow{}
			for _, i := range list {
				for _, c := range i.Conns() {
					rows = append(rows, accelRow{i.Name, c})
				}
			}
			err := print(cmd.OutOrStdout(), format, rows, rows, func(t *table) {
				if len(rows) == 0 {
					t.row("no accelerated connections")
					return
				}
				t.row("LOCAL", "REMOTE", "SIDE", "PATH", "SHORT", "STACK", "SPILLED", "AGE", "INSTANCE")
				for _, r := range rows {
					path := r.Path
					if r.Left != "" {
						path = "left: " + r.Left
					}
					t.row(r.Local, r.Remote, r.Side, path, bytesText(r.Redirected.Bytes), bytesText(r.Stack.Bytes),
						bytesText(r.Spilled.Bytes), fmt.Sprintf("%.0fs", r.AgeSeconds), r.Instance)
				}
			})
			return errors.Join(err, readError(unread))
		},
	}
	addFormat(cmd, &format)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "print joins and leaves as they happen (-o table or jsonl)")
	cmd.Flags().DurationVar(&during, "for", 0, "with --follow: end after this time, as 30s")
	return cmd
}
