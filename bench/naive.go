// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

//go:generate go tool bpf2go -go-package bench -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" naive bpf/naive.c

type naive struct {
	objects naiveObjects
	sockops link.Link
}

// AttachNaive attaches the unguarded "redirect everything" pair (sockops,
// sk_msg, SOCKHASH) to a cgroup2 directory: sockets of its processes that are
// established from now on are joined by their tuple alone.
//
// It exists only as the control of benchmarks and tests. It LOSES DATA: blocking
// reads fail with EAGAIN around a half-close, splice(2) readers hang, a sender
// is never held back, and Close throws away what was not read yet.
func AttachNaive(cgroupDir string) (io.Closer, error) {
	// Only kernels before 5.11 need it; on the others it changes nothing.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise the memlock limit: %w", err)
	}
	n := &naive{}
	if err := loadNaiveObjects(&n.objects, nil); err != nil {
		return nil, fmt.Errorf("load the naive control: %w", err)
	}
	// The verdict comes before the first socket: sockets inserted into a map
	// without one never get it.
	err := link.RawAttachProgram(link.RawAttachProgramOptions{
		Target:  n.objects.NaiveSockets.FD(),
		Program: n.objects.NaiveRedirect,
		Attach:  ebpf.AttachSkMsgVerdict,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach the naive sk_msg program: %w", err), n.objects.Close())
	}
	n.sockops, err = link.AttachCgroup(link.CgroupOptions{
		Path:    cgroupDir,
		Attach:  ebpf.AttachCGroupSockOps,
		Program: n.objects.NaiveInsert,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach the naive sockops program to %s: %w", cgroupDir, err), n.objects.Close())
	}
	return n, nil
}

// Close detaches both programs and frees the map; bytes still queued on joined
// sockets are gone.
func (n *naive) Close() error {
	err := n.sockops.Close()
	detach := link.RawDetachProgram(link.RawDetachProgramOptions{
		Target:  n.objects.NaiveSockets.FD(),
		Program: n.objects.NaiveRedirect,
		Attach:  ebpf.AttachSkMsgVerdict,
	})
	return errors.Join(err, detach, n.objects.Close())
}
