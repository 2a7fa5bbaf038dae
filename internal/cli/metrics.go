// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/metrics"
	"github.com/shuntnet/shunt/internal/node"
)

const defaultMetrics = "127.0.0.1:9777"

func newMetrics() *cobra.Command {
	var (
		listen, format string
		describe       bool
	)
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Export counters to Prometheus",
		Long: `Answers Prometheus at http://ADDRESS/metrics with the counters of everything that
is loaded, and /healthz, until it gets SIGINT or SIGTERM. With -o text it prints
them once instead, as node_exporter's textfile collector takes them. A command
under shunt run gives the counters of its run as long as it runs.`,
		Example: `  shunt metrics
  shunt metrics -o text >shunt.prom.new && mv shunt.prom.new /var/lib/node_exporter/shunt.prom
  shunt metrics --describe`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if describe {
				if format == "markdown" {
					return metrics.WriteMarkdown(out)
				}
				if format == "" {
					format = "table"
				}
				list := metrics.Describe()
				return print(out, format, list, list, func(t *table) {
					t.row("NAME", "TYPE", "LABELS", "MEANING")
					for _, m := range list {
						t.row(m.Name, m.Type, strings.Join(m.Labels, ","), m.Meaning)
					}
				})
			}
			c := metrics.New(node.Instances, version)
			switch {
			case format == "text" && cmd.Flags().Changed("listen"):
				return errors.New("use either --listen or -o text")
			case format == "text":
				return readError(c.WriteText(out))
			case format != "":
				return fmt.Errorf("unknown output format %q: use -o text, or --describe with -o table, json, yaml, jsonl or markdown", format)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return metrics.Serve(ctx, listen, metrics.Handler(c))
		},
	}
	cmd.Flags().StringVar(&listen, "listen", defaultMetrics, "address to answer on; it shows counters to whoever can reach it")
	cmd.Flags().StringVarP(&format, "output", "o", "", "text: print once and end; with --describe: table (default), json, yaml, jsonl or markdown")
	cmd.Flags().BoolVar(&describe, "describe", false, "list the metrics and what they mean; needs no root")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions( //nolint:errcheck // the flag exists
		[]string{"text", "table", "json", "yaml", "jsonl", "markdown"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
