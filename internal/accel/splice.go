// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"time"

	"github.com/cilium/ebpf"

	"github.com/shuntnet/shunt/internal/kernel"
)

// How long a reader that turned to splice has to come back to recv. A redirect
// that was on its way when it turned has long arrived by then.
const unstickAfter = 100 * time.Millisecond

// unstick resets the socket with that cookie if its reader waits in splice(2)
// for bytes that were redirected: an error to both ends, never silence.
func (p *Plane) unstick(ctx context.Context, cookie uint64, netns string, err error) {
	select {
	case <-time.After(unstickAfter):
	case <-ctx.Done(): // at once: nobody will look later
	}
	var stuck uint32
	if err == nil {
		stuck, err = p.coll.Programs[bpfProgStuck].Run(&ebpf.RunOptions{Context: [1]uint64{cookie}})
	}
	if err == nil && stuck == 0 {
		return
	}
	var c bpfConn
	if err == nil {
		if err = p.coll.Maps[bpfMapShuntConns].Lookup(cookie, &c); errors.Is(err, ebpf.ErrKeyNotExist) {
			return // closed meanwhile
		}
	}
	local, remote := addrPort(c.Tuple.Laddr, c.Tuple.Lport), addrPort(c.Tuple.Raddr, c.Tuple.Rport)
	if err == nil {
		err = kernel.InNetns(netns, func() error { return kernel.DestroySocket(cookie, local, remote) })
	}
	if err != nil {
		slog.Error("a splice reader waits for redirected bytes and could not be reset", "cookie", cookie, "local", local, "remote", remote, "err", err)
		return
	}
	slog.Warn("reset a connection whose reader turned to splice(2) with redirected bytes waiting; its workload stays on plain TCP from now on",
		"local", local, "remote", remote)
}

// Exclusion is a workload whose connections do not join any more, because one
// of its readers was seen in splice(2).
type Exclusion struct {
	Netns      uint64  `json:"netns" yaml:"netns"`             // netns cookie of the reader
	Side       string  `json:"side" yaml:"side"`               // active: readers that connect to Port, passive: that accept there
	Port       uint16  `json:"port" yaml:"port"`               // of the server
	AgeSeconds float64 `json:"age_seconds" yaml:"age_seconds"` // since it was last seen
}

// Exclusions lists the excluded workloads, newest first.
func (p *Plane) Exclusions() ([]Exclusion, error) {
	var (
		w    bpfWorkload
		at   uint64
		list []Exclusion
	)
	now := time.Duration(monotonic())
	it := p.coll.Maps[bpfMapShuntExclusions].Iterate()
	for it.Next(&w, &at) {
		list = append(list, Exclusion{w.Netns, sideNames[w.Side], w.Port, (now - time.Duration(at)).Seconds()})
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("list exclusions: %w", err)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].AgeSeconds < list[j].AgeSeconds })
	return list, nil
}

// ClearExclusions lets all workloads join again and returns how many there were.
func (p *Plane) ClearExclusions() (int, error) {
	m := p.coll.Maps[bpfMapShuntExclusions]
	var (
		w    bpfWorkload
		at   uint64
		keys []bpfWorkload
	)
	it := m.Iterate()
	for it.Next(&w, &at) {
		keys = append(keys, w)
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return 0, fmt.Errorf("list exclusions: %w", err)
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return 0, fmt.Errorf("clear an exclusion: %w", err)
		}
	}
	return len(keys), nil
}
