// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// NetnsCookie returns the cookie of the calling thread's network namespace: the
// number that bpf_get_netns_cookie returns for its sockets, never used twice
// until the machine restarts. Needs SO_NETNS_COOKIE (5.14).
func NetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket to ask for the netns cookie: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read SO_NETNS_COOKIE (needs a kernel that has it, 5.14 or newer): %w", err)
	}
	return cookie, nil
}

// InNetns runs fn inside the network namespace at path (/run/netns/NAME,
// /proc/PID/ns/net), on an OS thread and a goroutine of its own. Goroutines that
// fn starts are not in that namespace; sockets that it opens stay in it. With an
// empty path it just calls fn: that needs no capability.
func InNetns(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer target.Close()
	// Not the caller's goroutine: it would go on in the wrong namespace if the way
	// back failed. This one ends, and Go then kills a thread that is still locked.
	result := make(chan error, 1)
	go func() {
		err := errors.New("function called in a network namespace did not return") // runtime.Goexit
		defer func() { result <- err }()
		runtime.LockOSThread()
		home, e := os.Open("/proc/thread-self/ns/net")
		if e != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("open own network namespace: %w", e)
			return
		}
		defer home.Close()
		if e := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); e != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("enter network namespace %s (needs CAP_SYS_ADMIN): %w", path, e)
			return
		}
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
		}()
		err = fn()
	}()
	return <-result
}
