// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/node"
)

// exclusionRow is one line of `shunt exclusions`.
type exclusionRow struct {
	Instance        string `json:"instance" yaml:"instance"`
	accel.Exclusion `yaml:",inline"`
}

func newExclusions() *cobra.Command {
	var (
		format string
		forget bool
	)
	cmd := &cobra.Command{
		Use:   "exclusions",
		Short: "List or clear workloads that stay on plain TCP because they use splice(2)",
		Long: "A reader that uses splice(2) never sees bytes that went from socket to socket. When one is seen, its\n" +
			"connection goes back to plain TCP, and its workload (the readers that accept on, or connect to, one port\n" +
			"in one network namespace) joins no more until it is cleared here.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := node.Instances()
			if err != nil {
				return fmt.Errorf("read what is loaded: %w", err)
			}
			rows := []exclusionRow{}
			for _, i := range list {
				for _, e := range i.Exclusions() {
					rows = append(rows, exclusionRow{i.Name, e})
				}
				if !forget {
					continue
				}
				if _, err := i.ClearExclusions(); err != nil {
					return fmt.Errorf("clear the exclusions of %s: %w", i.Name, err)
				}
			}
			return print(cmd.OutOrStdout(), format, rows, rows, func(t *table) {
				if len(rows) == 0 {
					t.row("nothing is excluded")
					return
				}
				t.row("NETNS", "READERS THAT", "PORT", "LAST SEEN", "INSTANCE")
				for _, r := range rows {
					what := map[string]string{"active": "connect to", "passive": "accept on"}[r.Side]
					t.row(r.Netns, what, r.Port, fmt.Sprintf("%.0fs ago", r.AgeSeconds), r.Instance)
				}
			})
		},
	}
	addFormat(cmd, &format)
	cmd.Flags().BoolVar(&forget, "clear", false, "let them join again, and print what was cleared")
	return cmd
}
