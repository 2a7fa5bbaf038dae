// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// EnsureBPFFS makes sure that dir, by custom /sys/fs/bpf, lies in a BPF file
// system, and mounts one there if not. It makes dir where it can. Any number of
// processes may call it at once: one of them mounts.
func EnsureBPFFS(dir string) error {
	if ok, err := isBPFFS(dir); ok || err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the mount point of bpffs (or run `mount -t bpf -o mode=700 bpf %s` yourself): %w", dir, err)
	}
	under, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open the mount point of bpffs: %w", err)
	}
	defer under.Close()
	// Two mounts would lie on top of each other, and hide the pins of the first.
	if err := unix.Flock(int(under.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	if ok, err := isBPFFS(dir); ok || err != nil {
		return err
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount bpffs (as root: `mount -t bpf -o mode=700 bpf %s`): %w", dir, err)
	}
	return nil
}

// isBPFFS is false, without an error, where dir does not exist.
func isBPFFS(dir string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for bpffs at %s: %w", dir, err)
	}
	return uint32(st.Type) == unix.BPF_FS_MAGIC, nil
}

// bpffsUsable makes a BPF file system without attaching it to any directory:
// asking must not change the machine.
func bpffsUsable(dir string) (string, error) {
	if ok, err := isBPFFS(dir); err != nil {
		return "", err
	} else if ok {
		return "mounted at " + dir, nil
	}
	fd, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("not mounted at %s, and cannot be mounted: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := unix.FsconfigCreate(fd); err != nil {
		return "", fmt.Errorf("not mounted at %s, and cannot be mounted: %w", dir, err)
	}
	return "not mounted; shunt mounts it at " + dir + " when needed", nil
}
