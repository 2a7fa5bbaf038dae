// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/shuntnet/shunt/docs/schema"
	"github.com/shuntnet/shunt/internal/config"
)

func newCheck() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration file",
		Long: `Reads a configuration file, or stdin for "-", and prints every mistake in it on
stderr, one a line, as FILE:LINE:COLUMN: KEY: what is wrong; the fix. Exits with
1 if there is one. With -o json or yaml it prints the configuration as shunt
understands it, with every default written out. Asks the kernel for nothing.`,
		Example: "  shunt check /etc/shunt/shunt.yaml\n  shunt check -o json - <shunt.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			c, err := loadConfig(name, cmd.InOrStdin())
			var mistakes *config.Error
			if errors.As(err, &mistakes) {
				fmt.Fprintln(cmd.ErrOrStderr(), mistakes)
				return &ExitError{Code: 1}
			}
			if err != nil {
				return err
			}
			c = c.WithDefaults()
			return print(cmd.OutOrStdout(), format, c, []*config.Config{c}, func(w *table) {
				fmt.Fprintf(w, "%s: ok: %s\n", stdinName(name), c.Summary())
			})
		},
	}
	addFormat(cmd, &format)
	return cmd
}

// loadConfig reads a configuration, from in if path is "-".
func loadConfig(path string, in io.Reader) (*config.Config, error) {
	if path == "-" {
		return config.Read(stdinName(path), in)
	}
	return config.Load(path)
}

func stdinName(path string) string {
	if path == "-" {
		return "stdin"
	}
	return path
}

func newSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration file",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := cmd.OutOrStdout().Write(schema.JSON); err != nil {
				return fmt.Errorf("print the schema: %w", err)
			}
			return nil
		},
	}
}
