// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"
)

// formats that every noun can be printed in.
var formats = []string{"table", "json", "yaml", "jsonl"}

func addFormat(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVarP(format, "output", "o", "table", "output format: table, json, yaml or jsonl")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions( //nolint:errcheck // the flag exists
		formats, cobra.ShellCompDirectiveNoFileComp))
}

// table is tab-aligned text.
type table struct{ *tabwriter.Writer }

func (t *table) row(cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = fmt.Sprint(c)
	}
	fmt.Fprintln(t, strings.Join(text, "\t"))
}

// print writes value as json or yaml, lines one a line as jsonl, or what
// asTable makes.
func print[T any](out io.Writer, format string, value any, lines []T, asTable func(*table)) error {
	switch format {
	case "table":
		t := &table{tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)}
		asTable(t)
		return t.Flush()
	case "json":
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(value)
	case "jsonl":
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		for _, l := range lines {
			if err := enc.Encode(l); err != nil {
				return err
			}
		}
		return nil
	case "yaml":
		b, err := yaml.Marshal(value)
		if err != nil {
			return err
		}
		_, err = out.Write(b)
		return err
	}
	return checkFormat(format)
}

func checkFormat(format string) error {
	if slices.Contains(formats, format) {
		return nil
	}
	return fmt.Errorf("unknown output format %q: use -o table, json, yaml or jsonl", format)
}

// bytesText prints a number of bytes for people.
func bytesText(n uint64) string {
	const k = 1024
	v, units := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < k {
			break
		}
		v, units = v/k, u
	}
	if units == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units)
}
