// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/shuntnet/shunt/internal/accel"
)

// Options of a run.
type Options struct {
	Session     func() (Session, error) // an acceleration for each place
	Places      []string                // nil: loopback, veth, control
	Only        string                  // cases whose name or guarantee contains it
	Connections int                     // how many the loops of short connections open; 0: 2,000
	Progress    func(Progress)          // may be nil
}

// Progress of a run.
type Progress struct {
	Done, Total int
	Next        string
}

// result of a case in one world.
type result struct {
	seen   Observation
	joined uint64
	moved  uint64 // bytes, redirected
	reason string // why it was plain TCP, if it was
}

// Run carries out the cases, all worlds at the same time.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Places == nil {
		o.Places = []string{PlaceLoopback, PlaceVeth, PlaceControl}
	}
	if o.Connections == 0 {
		o.Connections = 2000
	}
	var todo []order
	for _, c := range registry {
		if o.Only != "" && !strings.Contains(c.Name, o.Only) && !strings.EqualFold(c.Guarantee, o.Only) {
			continue
		}
		for _, m := range c.Modes.each() {
			todo = append(todo, order{Case: c.Name, Mode: m, Connections: o.Connections})
		}
	}
	if len(todo) == 0 {
		return nil, fmt.Errorf("no case %q", o.Only)
	}
	names, err := worldsFor(o.Places)
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu      sync.Mutex
		wg      sync.WaitGroup
		errs    []error
		results = map[string][]result{}
		done    int
	)
	for _, name := range names {
		wg.Go(func() {
			got, err := runWorld(ctx, name, o.Session, todo, func(next string) {
				mu.Lock()
				defer mu.Unlock()
				done++
				if o.Progress != nil {
					o.Progress(Progress{done, len(todo) * len(names), name + ": " + next})
				}
			})
			mu.Lock()
			defer mu.Unlock()
			results[name] = got
			if err != nil {
				errs = append(errs, err)
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return judge(o.Places, todo, results), nil
}

func worldsFor(places []string) ([]string, error) {
	need := map[string]bool{}
	for _, p := range places {
		switch p {
		case PlaceLoopback, PlaceControl:
			need[plainLoopback] = true
		case PlaceVeth:
			need[plainVeth] = true
		default:
			return nil, fmt.Errorf("no place %q: want %s, %s or %s", p, PlaceLoopback, PlaceVeth, PlaceControl)
		}
		need[p] = true
	}
	return slices.Sorted(maps.Keys(need)), nil
}

func runWorld(ctx context.Context, name string, session func() (Session, error), todo []order, next func(string)) (_ []result, err error) {
	w, err := openWorld(ctx, name, session)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var list []result
	before, err := w.stats()
	if err != nil {
		return nil, err
	}
	for _, o := range todo {
		next(fmt.Sprintf("%s, %v", o.Case, o.Mode))
		seen, err := w.run(ctx, o)
		if err != nil {
			return nil, err
		}
		after, err := w.stats()
		if err != nil {
			return nil, err
		}
		for place, n := range after.Faults {
			if n > before.Faults[place] {
				seen = append(seen, "a helper call failed in the kernel half: "+place)
			}
		}
		list = append(list, result{
			seen:   seen,
			joined: after.Joined - before.Joined,
			moved:  after.Redirected.Bytes - before.Redirected.Bytes,
			reason: whyPlain(before, after),
		})
		before = after
	}
	return list, nil
}

// whyPlain is why the connections of a case were plain TCP, or became it; empty
// if they were accelerated to their end.
func whyPlain(before, after accel.Stats) string {
	most, reason := uint64(0), ""
	count := func(name string, n uint64) {
		if n > most || n == most && n > 0 && name < reason {
			most, reason = n, name
		}
	}
	for name, n := range after.Left {
		if name != "shutdown" { // how every half-closed connection ends
			count(name, n-before.Left[name])
		}
	}
	redirected := after.Redirected.Bytes > before.Redirected.Bytes
	if reason == "" && !redirected {
		for name, n := range after.NotJoined {
			count(name, n-before.NotJoined[name])
		}
	}
	if reason == "" && !redirected {
		for name, c := range after.Stack {
			count(name, c.Messages-before.Stack[name].Messages)
		}
	}
	if reason == "" && after.Joined == before.Joined {
		reason = "no connection was made"
	}
	return reason
}
