// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// MissingCapabilities returns those of CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON,
// by name and in this order, that the calling thread's effective set lacks.
// CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, as it does in the kernel.
func MissingCapabilities() []string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	// Cannot fail with a valid version and pid 0; if it did, everything is missing.
	_ = unix.Capget(&hdr, &data[0])
	return missing(uint64(data[1].Effective)<<32 | uint64(data[0].Effective))
}

func missing(effective uint64) []string {
	has := func(c uint) bool { return effective&(1<<c) != 0 }
	admin := has(unix.CAP_SYS_ADMIN)
	var names []string
	if !admin && !has(unix.CAP_BPF) {
		names = append(names, "CAP_BPF")
	}
	if !has(unix.CAP_NET_ADMIN) {
		names = append(names, "CAP_NET_ADMIN")
	}
	if !admin && !has(unix.CAP_PERFMON) {
		names = append(names, "CAP_PERFMON")
	}
	return names
}

// RemoveMemlock lifts this process's limit on locked memory where the kernel
// charges BPF maps to it (before 5.11); elsewhere it does nothing. Call it once
// before loading anything.
func RemoveMemlock() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lift the limit on locked memory (`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the unit): %w", err)
	}
	return nil
}

func memlock() (string, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return "", err
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil {
		return "", errors.New("the limit on locked memory cannot be read")
	}
	if lim.Cur == unix.RLIM_INFINITY {
		return "unlimited", nil
	}
	return "not needed: BPF memory is charged to the memory cgroup", nil
}
