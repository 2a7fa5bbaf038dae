// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/shuntnet/shunt/internal/api"
)

func newDiff() *cobra.Command {
	var format, socket string
	cmd := &cobra.Command{
		Use:   "diff FILE",
		Short: "Show what applying FILE would change; exit status 2 if anything",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			changes, err := askAgent(cmd, args[0], socket, (*api.Client).Diff)
			if err != nil {
				return err
			}
			if err := printChanges(cmd, format, changes, "no difference"); err != nil {
				return err
			}
			if len(changes) > 0 {
				return &ExitError{Code: 2}
			}
			return nil
		},
	}
	addFormat(cmd, &format)
	addSocket(cmd, &socket)
	return cmd
}
