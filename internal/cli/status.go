// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

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
			list, err := node.Instances()
			if err != nil {
				return fmt.Errorf("read what is loaded: %w", err)
			}
			if list == nil {
				list = []node.Instance{}
			}
			return print(cmd.OutOrStdout(), format, list, list, func(t *table) {
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
		},
	}
	addFormat(cmd, &format)
	return cmd
}

// accelRow is one line of `shunt accel`.
type accelRow struct {
	Instance   string `json:"instance" yaml:"instance"`
	accel.Conn `yaml:",inline"`
}

func newAccel() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "accel",
		Short: "List accelerated connections, their path and counters",
		Long: "Lists the sockets that joined, one line for each direction: the path that its last message took\n" +
			"(short, or why not), and what it sent by each path.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := node.Instances()
			if err != nil {
				return fmt.Errorf("read what is loaded: %w", err)
			}
			rows := []accelRow{}
			for _, i := range list {
				for _, c := range i.Conns() {
					rows = append(rows, accelRow{i.Name, c})
				}
			}
			return print(cmd.OutOrStdout(), format, rows, rows, func(t *table) {
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
		},
	}
	addFormat(cmd, &format)
	return cmd
}
