// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/node"
)

// defaultSnaplen is more than any packet has.
const defaultSnaplen = 262144

func newTap() *cobra.Command {
	var (
		opts    node.TapOptions
		file    string
		snaplen uint32
		during  time.Duration
	)
	cmd := &cobra.Command{
		Use:   "tap -w FILE [flags] [FILTER]",
		Short: "Capture accelerated traffic as pcapng",
		Long: `Writes what accelerated connections send to FILE, as packets with TCP and IP
headers that tshark and Wireshark read. tcpdump sees only what took the stack.
Headers are made by shunt: addresses, ports and checksums are right, sequence
numbers are one continuous stream for each direction. A comment on each packet
names the process, its cgroup and the path that the message took.

FILTER is any of these, joined by "and":
  port N        one end has this port
  host ADDRESS  one end has this address
  pid N         this process has one end open
  cgroup PATH   one end belongs to this cgroup or to one below it

It ends when it is interrupted, and says how much it wrote and what it missed.
When it is killed, the kernel half stops writing within 3 seconds.`,
		Example: `  shunt tap -w redis.pcapng port 6379
  shunt tap -w - port 6379 and pid 4711 | tshark -r - -V`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if opts.Filter, err = accel.ParseTapFilter(strings.Join(args, " ")); err != nil {
				return err
			}
			if file == "" {
				return errors.New("where to? Use: shunt tap -w FILE, or -w - for standard output")
			}
			opts.Snaplen, opts.Version = snaplen, version
			opts.Ready = func(n int) { fmt.Fprintf(cmd.ErrOrStderr(), "shunt: tapping %d instances; ^C ends\n", n) }
			return tap(cmd, opts, file, during)
		},
	}
	cmd.Flags().StringVarP(&file, "write", "w", "", "write to this file; - is standard output")
	cmd.Flags().Uint32Var(&snaplen, "snaplen", defaultSnaplen, "keep at most this many bytes of payload of each packet")
	cmd.Flags().DurationVar(&during, "for", 0, "end after this time, as 30s")
	cmd.Flags().Uint64Var(&opts.Count, "count", 0, "end after this many packets with payload")
	cmd.Flags().StringVar(&opts.Instance, "instance", "", "only this instance, as shunt status names it")
	return cmd
}

func tap(cmd *cobra.Command, opts node.TapOptions, file string, during time.Duration) (err error) {
	out := cmd.OutOrStdout()
	if file == "-" {
		if f, ok := out.(*os.File); ok && isTerminal(f) {
			return errors.New("-w -: standard output is a terminal: use a file or a pipe")
		}
	} else {
		// Payload is nobody else's business.
		f, e := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if e != nil {
			return fmt.Errorf("-w: %w", e)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	ctx, stop := untilInterrupted(cmd.Context(), during)
	defer stop()
	sum, err := node.Tap(ctx, opts, out)
	printTapSummary(cmd.ErrOrStderr(), sum)
	if errors.Is(err, unix.EPIPE) { // whoever read it has seen enough
		return nil
	}
	if err != nil {
		return fmt.Errorf("tap: %w", err)
	}
	return nil
}

func printTapSummary(w io.Writer, s node.TapSummary) {
	fmt.Fprintf(w, "shunt: %d packets, %s of payload, of %d connections; %d dropped\n", s.Packets, bytesText(s.Bytes), s.Connections, s.Dropped)
	if s.Cut > 0 {
		fmt.Fprintf(w, "shunt:   %d packets cut to --snaplen\n", s.Cut)
	}
	if s.Dropped > 0 {
		fmt.Fprintf(w, "shunt:   %s dropped because the buffer was full: use a filter, or a smaller --snaplen\n", bytesText(s.DroppedBytes))
	}
	if s.Unread > 0 {
		fmt.Fprintf(w, "shunt:   %s that the kernel half could not read\n", bytesText(s.Unread))
	}
}

// untilInterrupted ends at SIGINT or SIGTERM, or after a time that is not 0.
func untilInterrupted(ctx context.Context, during time.Duration) (context.Context, context.CancelFunc) {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	if during <= 0 {
		return ctx, stop
	}
	ctx, cancel := context.WithTimeout(ctx, during)
	return ctx, func() { cancel(); stop() }
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// followPairs is `shunt accel --follow`.
func followPairs(cmd *cobra.Command, format string, during time.Duration) error {
	out := cmd.OutOrStdout()
	head := func(int) {} // printed when nothing is missed any more
	var line func(p node.PairEvent) error
	switch format {
	case "table":
		// Columns cannot be aligned ahead of what comes.
		const columns = "%-15s %-6s %-22s %-22s %-20s %-20s %s\n"
		head = func(int) { fmt.Fprintf(out, columns, "TIME", "EVENT", "LOCAL", "REMOTE", "PROCESS", "PEER", "REASON") }
		line = func(p node.PairEvent) error {
			_, err := fmt.Fprintf(out, columns, p.Time.Format("15:04:05.000000"), p.Event, p.Local, p.Remote, dash(p.Process), dash(p.Peer), dash(p.Reason))
			return err
		}
	case "jsonl":
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		line = func(p node.PairEvent) error { return enc.Encode(p) }
	default:
		return fmt.Errorf("output format %q does not go with --follow: use -o table or jsonl", format)
	}
	ctx, stop := untilInterrupted(cmd.Context(), during)
	defer stop()
	lost, err := node.Follow(ctx, head, line)
	if lost > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "shunt: %d joins and leaves dropped because the buffer was full\n", lost)
	}
	if err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("follow: %w", err)
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
