// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shuntnet/shunt/bench"
)

func newDemo() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show before and after on an embedded client and server",
		Long: "Measures an embedded client and server over plain TCP and accelerated, in turn, for about 20 seconds, checks\n" +
			"every message, and says what the ratio means. Touches nothing but its own processes. Needs root.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "table" && format != "json" {
				return fmt.Errorf("unknown output format %q: use -o table or -o json", format)
			}
			report, err := runBench(cmd, bench.DemoOptions())
			if err != nil {
				return fmt.Errorf("demo: %w", err)
			}
			if format == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(report)
			}
			if err := report.WriteDemo(cmd.OutOrStdout()); err != nil {
				return fmt.Errorf("demo: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "table", "output format: table or json")
	return cmd
}
