// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/api"
	"github.com/shuntnet/shunt/internal/config"
	"github.com/shuntnet/shunt/internal/metrics"
	"github.com/shuntnet/shunt/internal/node"
)

// DefaultConfig is the file of the agent.
const DefaultConfig = "/etc/shunt/shunt.yaml"

func newAgent() *cobra.Command {
	var (
		file, socket string
		opts         node.AgentOptions
	)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Accelerate what the configuration selects, on this machine",
		Long: `Loads the data path, or adopts the one that is there, selects what the file says,
and keeps that up to date while cgroups come and go. SIGHUP reads the file again;
if it is wrong, what was in force stays. SIGTERM ends the process and leaves the
data path in place: shunt unload takes it out.`,
		Args: cobra.NoArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			return runAgent(file, socket, opts)
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", DefaultConfig, "configuration file")
	addSocket(cmd, &socket)
	addPlace(cmd, &opts)
	return cmd
}

func addSocket(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", api.DefaultSocket, "the agent's socket")
}

// addPlace adds the flags for an agent that has a part of the machine only.
func addPlace(cmd *cobra.Command, opts *node.AgentOptions) {
	cmd.Flags().StringVar(&opts.CgroupRoot, "cgroup-root", "", "attach to this cgroup directory instead of the root of cgroup2")
	cmd.Flags().StringVar(&opts.PinRoot, "pin-root", "", "pin below this directory of bpffs instead of /sys/fs/bpf/shunt/accel")
}

func runAgent(file, socket string, opts node.AgentOptions) error {
	// Before anything is loaded: from here on a signal is a request.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)

	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	agent, err := node.NewAgent(cfg, opts)
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	defer agent.Close()
	a := &measured{Agent: agent, metrics: &metrics.Server{Handler: metrics.Handler(metrics.New(node.Instances, version))}}
	if err := a.metrics.Listen(cfg.Observe.Metrics); err != nil {
		return err
	}
	defer a.metrics.Close()
	l, err := api.Listen(socket)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- api.Serve(ctx, l, a) }()
	go agent.Run(ctx, watchdog())
	notify("READY=1", "STATUS=running")
	for {
		select {
		case <-hup:
			reload(a, file)
		case err := <-served:
			stop()
			return err
		case <-ctx.Done():
			notify("STOPPING=1")
			return <-served
		}
	}
}

// measured is an agent whose metrics follow the configuration.
type measured struct {
	*node.Agent
	metrics *metrics.Server
}

// Apply changes both or neither.
func (m *measured) Apply(cfg *config.Config) ([]config.Change, error) {
	before := m.Config().Observe.Metrics
	if err := m.metrics.Listen(cfg.Observe.Metrics); err != nil {
		m.Refused(err)
		return nil, err
	}
	changes, err := m.Agent.Apply(cfg)
	if err != nil {
		return nil, errors.Join(err, m.metrics.Listen(before))
	}
	for _, c := range changes {
		slog.Info("applied", "change", c.String())
	}
	return changes, nil
}

func reload(agent *measured, file string) {
	if err := node.NotifyReloading(); err != nil {
		slog.Warn("reload", "err", err)
	}
	status := "STATUS=running"
	cfg, err := config.Load(file)
	if err != nil {
		agent.Refused(err)
	} else {
		_, err = agent.Apply(cfg)
	}
	if err != nil {
		slog.Error("not reloaded, what was in force stays", "err", err)
		status = "STATUS=running; the last reload was refused, see the log"
	}
	notify("READY=1", status)
}

func notify(lines ...string) {
	if err := node.Notify(lines...); err != nil {
		slog.Warn("systemd does not listen", "err", err)
	}
}

// watchdog returns what tells systemd that the agent works.
func watchdog() func() {
	every := node.WatchdogInterval() / 2
	if every == 0 {
		return nil
	}
	var last time.Time
	return func() {
		if time.Since(last) >= every-node.Rescan {
			last = time.Now()
			notify("WATCHDOG=1")
		}
	}
}
