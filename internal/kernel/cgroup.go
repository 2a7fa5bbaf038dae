// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoCgroup2 says that no cgroup2 hierarchy is mounted, and how to mount one.
var ErrNoCgroup2 = errors.New("no cgroup2 mount found: run `mount -t cgroup2 none /sys/fs/cgroup`, " +
	"or next to cgroup v1: `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`")

// Cgroup2 returns the mount point of the cgroup2 hierarchy, in a unified layout
// (/sys/fs/cgroup) or a hybrid one (/sys/fs/cgroup/unified).
// The error is [ErrNoCgroup2] where there is none.
func Cgroup2() (mount string, err error) {
	m, err := cgroup2Mount()
	return m.point, err
}

// OwnCgroup2 returns the absolute directory of this process's own cgroup in the
// cgroup2 mount. It fails where the mount does not show that cgroup, as in a
// container that was given only a part of the hierarchy.
func OwnCgroup2() (string, error) {
	m, err := cgroup2Mount()
	if err != nil {
		return "", err
	}
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup (is /proc mounted?): %w", err)
	}
	defer f.Close()
	dir, err := ownCgroup(m, f)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("own cgroup is not there, start again from another shell: %w", err)
	}
	return dir, nil
}

// cgroupMount is a cgroup2 mount: the directory root of the hierarchy is seen at point.
type cgroupMount struct{ root, point string }

func cgroup2Mount() (cgroupMount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroupMount{}, fmt.Errorf("find cgroup2 (is /proc mounted?): %w", err)
	}
	defer f.Close()
	return findCgroup2(f)
}

// mountinfo escapes what would break its columns.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// findCgroup2 reads the format of proc_pid_mountinfo(5). A mount of the whole
// hierarchy is preferred to one of a part of it.
func findCgroup2(mountinfo io.Reader) (cgroupMount, error) {
	var found cgroupMount
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		f := strings.Fields(left)
		if !ok || len(f) < 6 || !strings.HasPrefix(right, "cgroup2 ") {
			continue
		}
		m := cgroupMount{root: unescape.Replace(f[3]), point: unescape.Replace(f[4])}
		if found.point == "" || (m.root == "/" && found.root != "/") {
			found = m
		}
	}
	if err := lines.Err(); err != nil {
		return found, fmt.Errorf("read mountinfo: %w", err)
	}
	if found.point == "" {
		return found, ErrNoCgroup2
	}
	return found, nil
}

// ownCgroup reads the format of /proc/PID/cgroup. Its path and the root of the
// mount both count from the root of the cgroup namespace.
func ownCgroup(m cgroupMount, cgroups io.Reader) (string, error) {
	lines := bufio.NewScanner(cgroups)
	for lines.Scan() {
		path, ok := strings.CutPrefix(lines.Text(), "0::")
		if !ok {
			continue
		}
		below, ok := strings.CutPrefix(path, strings.TrimSuffix(m.root, "/"))
		// "/.." leads out of the namespace, to directories whose names cannot be known.
		if !ok || (below != "" && below[0] != '/') || strings.HasPrefix(path, "/..") || strings.HasPrefix(m.root, "/..") {
			return "", fmt.Errorf("own cgroup %s is outside of what %s shows (%s): run outside of the container, or with its own cgroup namespace", path, m.point, m.root)
		}
		return filepath.Join(m.point, below), nil
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read own cgroup: %w", err)
	}
	return "", fmt.Errorf("this process is in no cgroup2: %w", ErrNoCgroup2)
}

// cgroupWritable says where this process may make a cgroup of its own.
func cgroupWritable() (string, error) {
	dir, err := OwnCgroup2()
	if err != nil {
		return "", err
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return "", fmt.Errorf("own cgroup %s is not writable: %w", dir, err)
	}
	return dir, nil
}
