// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/shuntnet/shunt/internal/accel"
)

// UnloadOptions of Unload.
type UnloadOptions struct {
	AgentOptions
	Force   bool                      // do not wait: what is queued in joined sockets is lost
	Waiting func(r []accel.Remaining) // called when what is left changes, one for each instance
}

// Unload takes the agent's instances out. It stops joining, brings every
// connection back to plain TCP, and removes what is pinned once the last has left
// the map. If ctx ends before, nothing joins any more, the rest stays as it is,
// and the error is ErrBusy. removed says how many sockets were in a map when it
// was removed by force.
func Unload(ctx context.Context, opts UnloadOptions) (removed int, err error) {
	root := opts.pinRoot()
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	l, err := lockPins(root)
	if err != nil {
		return 0, err
	}
	defer l.Close() //nolint:errcheck // a directory
	remove := accel.Options{Fault: opts.Fault}
	if err := accel.RemoveWith(filepath.Join(root, freshPin), remove); err != nil {
		return 0, err
	}
	dirs := oldInstances(root)
	if dir := filepath.Join(root, agentPin); exists(dir) {
		dirs = append(dirs, dir)
	}
	if opts.Force {
		for _, dir := range dirs {
			n, err := accel.Mapped(dir)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return removed, err
			}
			removed += n
			if err := accel.RemoveWith(dir, remove); err != nil {
				return removed, err
			}
		}
		return removed, opts.removeRoot()
	}
	before := ""
	for {
		var left []accel.Remaining
		for _, dir := range dirs {
			if !exists(dir) {
				continue
			}
			r, err := drainOnce(dir, opts.Fault)
			if err != nil {
				return 0, err
			}
			if r.Sockets() > 0 {
				left = append(left, r)
			}
		}
		if len(left) == 0 {
			return 0, opts.removeRoot()
		}
		if now := fmt.Sprint(left); now != before && opts.Waiting != nil {
			opts.Waiting(left)
			before = now
		}
		select {
		case <-ctx.Done():
			n := 0
			for _, r := range left {
				n += r.Sockets()
			}
			return 0, fmt.Errorf("%d sockets: %w", n, ErrBusy)
		case <-time.After(drainPause):
		}
	}
}

// drainOnce brings the instance nearer to its end, and removes it if nothing is
// left in it.
func drainOnce(dir string, fault func(string) error) (r accel.Remaining, err error) {
	opts := accel.Options{Fault: fault}
	if accel.Complete(dir) { // else someone died while removing it: it was empty then
		if err := opts.Step("stop selecting"); err != nil {
			return r, err
		}
		if err := accel.StopSelecting(dir); err != nil {
			return r, err
		}
		if err := opts.Step("drain"); err != nil {
			return r, err
		}
		// Only a look at no socket at all says that none is left: one may join
		// while the others are looked at.
		for tries := 0; ; tries++ {
			if r, err = accel.Drain(dir); err != nil || r.Sockets() > 0 {
				return r, err
			}
			if r.Empty() {
				break
			}
			if tries == 100 {
				return r, fmt.Errorf("sockets keep joining %s: %w", dir, ErrBusy)
			}
		}
	}
	return r, accel.RemoveWith(dir, opts)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// removeRoot removes a pin root of one's own if nothing is in it. The machine's
// stays: a session may be about to make its directory there.
func (o AgentOptions) removeRoot() error {
	if o.PinRoot == "" {
		return nil
	}
	if entries, err := os.ReadDir(o.PinRoot); err != nil || len(entries) > 0 {
		return nil //nolint:nilerr // it is used, or gone
	}
	if err := os.Remove(o.PinRoot); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the empty pin directory: %w", err)
	}
	return nil
}
