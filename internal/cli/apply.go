// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shuntnet/shunt/internal/api"
	"github.com/shuntnet/shunt/internal/config"
)

func newApply() *cobra.Command {
	var format, socket string
	cmd := &cobra.Command{
		Use:   "apply FILE",
		Short: "Make FILE what the running agent does, and print what changed",
		Long: `Sends FILE to the running agent, which checks it and makes it its configuration,
all of it or nothing. Connections that are established stay as they are. It lasts
until the agent reads its own file again: at SIGHUP and when it starts.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			changes, err := askAgent(cmd, args[0], socket, (*api.Client).Apply)
			if err != nil {
				return err
			}
			return printChanges(cmd, format, changes, "nothing changed")
		},
	}
	addFormat(cmd, &format)
	addSocket(cmd, &socket)
	return cmd
}

func askAgent(cmd *cobra.Command, file, socket string, ask func(*api.Client, context.Context, string, []byte) ([]config.Change, error)) ([]config.Change, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	name := file
	if abs, err := filepath.Abs(file); err == nil {
		name = abs
	}
	changes, err := ask(api.NewClient(socket), cmd.Context(), name, data)
	if errors.Is(err, api.ErrNoAgent) {
		err = fmt.Errorf("%w; start it with `shunt agent --config %s`", err, file)
	}
	return changes, err
}

func printChanges(cmd *cobra.Command, format string, changes []config.Change, none string) error {
	return print(cmd.OutOrStdout(), format, changes, changes, func(t *table) {
		if len(changes) == 0 {
			t.row(none)
		}
		for _, c := range changes {
			t.row(c)
		}
	})
}
