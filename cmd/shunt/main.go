// SPDX-License-Identifier: Apache-2.0

// Command shunt gives a Linux node a short path for its network traffic.
package main

import (
	"os"

	"github.com/shuntnet/shunt/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
