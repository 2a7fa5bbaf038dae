// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/kernel"
	"github.com/shuntnet/shunt/internal/node"
)

// runSummary is what `run --json` writes.
type runSummary struct {
	Command []string    `json:"command"`
	Status  int         `json:"status"` // exit status, 128 + signal where one ended it
	Seconds float64     `json:"seconds"`
	Accel   accel.Stats `json:"accel"`
}

const sigsetSize = 8 // bytes of the kernel's sigset_t

func newRun() *cobra.Command {
	var (
		opts     node.SessionOptions
		jsonFile string
		quiet    bool
		maxQueue = queueSize(accel.DefaultMaxQueue)
	)
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG…]",
		Short: "Run a command with its local TCP accelerated",
		Long: `Runs COMMAND in a cgroup of its own and accelerates the TCP connections between
it and its children: they go from socket to socket, not through the TCP/IP stack.
Connections to anything else are left alone. Signals, exit status, stdio and the
working directory are the command's own. A summary goes to stderr at the end;
then everything is removed.`,
		Example: `  shunt run -- sh -c 'redis-server --save "" & sleep 1; redis-benchmark -q; redis-cli shutdown'
  shunt run --json summary.json -q -- ./integration-tests`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("run what? Use: shunt run -- COMMAND…")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for i, name := range opts.Accept {
				g, err := node.Guarantee(name)
				if err != nil {
					return err
				}
				opts.Accept[i] = g
			}
			opts.MaxQueue = uint32(maxQueue)
			return run(cmd, args, opts, jsonFile, quiet)
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows the command's name is the command's
	cmd.Flags().StringVar(&jsonFile, "json", "", "write the summary to this file as JSON")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no summary on stderr")
	cmd.Flags().StringSliceVar(&opts.Accept, "accept", nil, "guarantees to give up, by number or word: G4 or blocking (join blocking sockets), G5 or reader (do not wait for proof of the reader), G6 or reset (no reset guard)")
	cmd.Flags().Var(&maxQueue, "max-queue", "what may wait at one receiver before a connection spills to the stack; KiB, MiB or GiB, without a unit KiB")
	return cmd
}

func run(cmd *cobra.Command, argv []string, opts node.SessionOptions, jsonFile string, quiet bool) error {
	path, err := node.FindCommand(argv[0])
	if err != nil {
		return startError(err)
	}
	var out *os.File
	if jsonFile != "" { // before anything runs: a bad path must not cost a run
		if out, err = os.Create(jsonFile); err != nil {
			return fmt.Errorf("--json: %w", err)
		}
		defer out.Close() //nolint:errcheck // closed with its error below
	}
	session, err := node.NewSession(opts)
	if err != nil {
		return fmt.Errorf("cannot accelerate: %w", err)
	}
	start := time.Now()
	status, runErr := session.Run(path, argv)
	summary := runSummary{Command: argv, Status: exitStatus(status), Seconds: time.Since(start).Seconds()}
	summary.Accel, err = session.Stats()
	closeErr := session.Close()
	if runErr != nil {
		return startError(runErr)
	}
	stderr := cmd.ErrOrStderr()
	if err != nil {
		fmt.Fprintf(stderr, "shunt: no summary: %v\n", err)
	} else if !quiet {
		printSummary(stderr, summary.Accel)
		// Where it matters, the user ended a command that hung, and reads this.
		if summary.Accel.Joined > 0 && !slices.Contains(opts.Accept, "G5") && kernel.CheckFIONREAD() != nil {
			fmt.Fprintln(stderr, "shunt:   this kernel miscounts FIONREAD: nginx and Java's available() may stall, see shunt doctor")
		}
	}
	if errors.Is(closeErr, node.ErrBusy) {
		fmt.Fprintf(stderr, "shunt: %v; it stays as it is, and the next shunt run after they end removes it\n", closeErr)
	} else if closeErr != nil {
		fmt.Fprintf(stderr, "shunt: clean up: %v\n", closeErr)
	}
	if out != nil {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if err := errors.Join(enc.Encode(summary), out.Close()); err != nil {
			fmt.Fprintf(stderr, "shunt: --json: %v\n", err)
		}
	}
	if status.Signaled() {
		dieOf(status.Signal())
	}
	return &ExitError{Code: summary.Status}
}

func startError(err error) error {
	var notStarted *node.NotStartedError
	if errors.As(err, &notStarted) {
		return &ExitError{Code: notStarted.Status, Err: err}
	}
	return err
}

func exitStatus(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// dieOf ends this process as the command ended, so that whoever waits for it
// sees the same. It returns if the signal does not kill.
func dieOf(sig syscall.Signal) {
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) //nolint:errcheck // the core, if any, was the command's
	// signal.Reset would leave the runtime's handler for SIGSEGV, SIGABRT and
	// their like, which prints a traceback and exits with 2.
	// A struct sigaction with SIG_DFL, longer than any architecture's.
	var defaultAction [64]byte
	unix.RawSyscall6( //nolint:errcheck // cannot fail with a signal that kills
		unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&defaultAction)), 0, sigsetSize, 0, 0)
	if unix.Kill(os.Getpid(), sig) == nil {
		time.Sleep(100 * time.Millisecond) // until it is delivered to this thread
	}
}

// printSummary says in a few lines what happened and why.
func printSummary(w io.Writer, s accel.Stats) {
	if s.Connections == 0 {
		fmt.Fprintln(w, "shunt: the command made no TCP connections")
		return
	}
	stack := s.StackTotal()
	if s.Joined == 0 {
		fmt.Fprintf(w, "shunt: 0 of %d connections joined\n", s.Connections)
	} else {
		fmt.Fprintf(w, "shunt: %d of %d connections joined; %s in %d messages socket to socket, %s in %d through the stack\n",
			s.Joined, s.Connections, bytesText(s.Redirected.Bytes), s.Redirected.Messages, bytesText(stack.Bytes), stack.Messages)
	}
	for _, why := range slices.Sorted(maps.Keys(s.NotJoined)) {
		fmt.Fprintf(w, "shunt:   %d not joined: %s\n", s.NotJoined[why], accel.Explain(why))
	}
	for _, why := range slices.Sorted(maps.Keys(s.Left)) {
		fmt.Fprintf(w, "shunt:   %d of them left for plain TCP later: %s\n", s.Left[why], accel.Explain(why))
	}
	for _, why := range slices.Sorted(maps.Keys(s.Stack)) {
		fmt.Fprintf(w, "shunt:   %s through the stack: %s\n", bytesText(s.Stack[why].Bytes), accel.Explain(why))
	}
	for _, place := range slices.Sorted(maps.Keys(s.Faults)) {
		fmt.Fprintf(w, "shunt:   %d failed kernel calls: %s\n", s.Faults[place], place)
	}
}
