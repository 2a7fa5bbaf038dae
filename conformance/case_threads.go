// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

var threads = Case{
	Name: "threads", Guarantee: "G1", Modes: allModes,
	Doc: "eight threads write to one socket, four read from the other end",
	Run: func(e *Env) {
		const writers, readers, each = 8, 4, 200000
		c, s := e.settled()
		var counts [256]int
		var mu sync.Mutex
		var calls, reads []*call
		for range readers {
			reads = append(reads, e.async(func() string {
				buf := make([]byte, 10000)
				for {
					n, err := s.recv(buf)
					if errors.Is(err, unix.EAGAIN) && e.Mode != Blocking {
						// Not the edge-triggered epoll: its one event would wake one of them.
						s.poll(unix.POLLIN, e.patience)
						continue
					}
					if err != nil || n == 0 {
						return moved(n, err)
					}
					mu.Lock()
					for _, b := range buf[:n] {
						counts[b]++
					}
					mu.Unlock()
				}
			}))
		}
		for i := range writers {
			calls = append(calls, e.async(func() string {
				buf := bytes.Repeat([]byte{byte(i)}, 3000)
				for left := each; left > 0; {
					n, err := unix.SendmsgN(c.fd, buf[:min(left, len(buf))], nil, nil, unix.MSG_NOSIGNAL)
					if errors.Is(err, unix.EAGAIN) && e.Mode != Blocking {
						c.poll(unix.POLLOUT, e.patience)
						continue
					}
					if err != nil {
						return errname(err)
					}
					left -= n
				}
				return "all"
			}))
		}
		for _, w := range calls {
			e.Say("a thread writes", w.wait())
		}
		e.Say("shutdown", c.shutdown(unix.SHUT_WR))
		for _, r := range reads {
			e.Say("a thread reads to the end", r.wait())
		}
		e.Say("bytes of each", counts[:writers])
	},
}
