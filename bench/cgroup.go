// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups makes throw-away cgroups below one directory, named after this process.
type cgroups struct {
	parent string
	made   atomic.Uint64
}

// leftPrefix and the process id start the name of every directory a bench makes.
const leftPrefix = "shunt-bench-"

// newCgroups also removes what a killed bench left behind.
func newCgroups(parent string) (*cgroups, error) {
	return &cgroups{parent: parent}, removeLeft(parent, os.Remove)
}

// removeLeft removes the directories below parent of benches that run no more.
func removeLeft(parent string, remove func(string) error) error {
	left, err := filepath.Glob(filepath.Join(parent, leftPrefix+"*"))
	if err != nil {
		return fmt.Errorf("look for what earlier runs left: %w", err)
	}
	for _, dir := range left {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), leftPrefix), "-")
		pid, err := strconv.Atoi(owner)
		if err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			_ = remove(dir) // busy, or another user's: the next run tries again
		}
	}
	return nil
}

func (c *cgroups) make() (string, error) {
	dir := filepath.Join(c.parent, fmt.Sprintf("%s%d-%d", leftPrefix, os.Getpid(), c.made.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a cgroup: %w", err)
	}
	return dir, nil
}

// removeCgroup removes an empty cgroup; one that was populated a moment ago can be busy still.
func removeCgroup(dir string) error {
	var err error
	for range 100 {
		if err = os.Remove(dir); err == nil || !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("remove a cgroup: %w", err)
	}
	return nil
}
