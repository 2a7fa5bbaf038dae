// SPDX-License-Identifier: Apache-2.0

// Package kernel tells what this kernel and machine can do, and holds the few
// things planes need from the machine: the cgroup2 and bpffs mounts, network
// namespaces, capabilities. It asks by trying, never by comparing versions: the
// versions in the advice are those of the mainline kernel, and distributions
// carry features back.
package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Status is the outcome of a [Check].
type Status string

// A check that warns costs speed or a part of the product; accel cannot run with
// one that fails, unless its advice names a guarantee to accept.
const (
	Pass Status = "PASS"
	Warn Status = "WARN"
	Fail Status = "FAIL"
)

// Check is one thing that was asked of the machine.
type Check struct {
	Name   string `json:"name" yaml:"name"`                   // stable, for scripts
	Status Status `json:"status" yaml:"status"`               // PASS, WARN or FAIL
	Detail string `json:"detail" yaml:"detail"`               // what was found
	Fix    string `json:"fix,omitempty" yaml:"fix,omitempty"` // what a person can do about it; never empty on WARN and FAIL
}

const (
	bpfDir  = "/sys/fs/bpf"
	rebuild = "boot a kernel built with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF, CONFIG_NET_SOCK_MSG and CONFIG_BPF_STREAM_PARSER; the distributions' kernels from 5.10 on are"
	btfOn   = "boot a kernel built with CONFIG_DEBUG_INFO_BTF (there must be a /sys/kernel/btf/vmlinux)"
	beRoot  = "run as root, or give the program CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
	outside = "run as root of the machine itself, not of a user namespace, nor in a container that filters bpf(2)"
)

// probe is a question: run answers it with a detail or an error.
type probe struct {
	name   string
	bad    Status // the status of an error
	detail string // of a success, if run gives none
	fix    string
	bpf    bool // run loads something
	gate   bool // if this fails, nothing can be loaded
	run    func() (string, error)
}

// Probe asks everything, in the order in which a person would want to read it.
// It changes nothing on the machine; what it attaches is gone when it returns.
func Probe() []Check { return run(probes()) }

func run(probes []probe) []Check {
	checks := make([]Check, 0, len(probes))
	var unchecked []string
	closed := false
	for _, p := range probes {
		if p.bpf && closed {
			unchecked = append(unchecked, p.name)
			continue
		}
		c := p.check()
		closed = closed || (p.gate && c.Status == Fail)
		checks = append(checks, c)
	}
	if closed {
		checks = append(checks, Check{"not checked", Warn, strings.Join(unchecked, ", "), "mend what failed above, then ask again"})
	}
	return checks
}

func (p probe) check() Check {
	detail, err := p.run()
	switch {
	case errors.Is(err, ebpf.ErrNotSupported):
		return Check{p.name, p.bad, "not in this kernel", p.fix}
	case err != nil:
		return Check{p.name, p.bad, err.Error(), p.fix}
	case detail == "":
		detail = p.detail
	}
	return Check{Name: p.name, Status: Pass, Detail: detail}
}

func probes() []probe {
	return []probe{
		{name: "capabilities", bad: Fail, detail: "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON", fix: beRoot, gate: true, run: quiet(capabilities)},
		{name: "bpf(2)", bad: Fail, detail: "programs may be loaded", fix: outside, bpf: true, gate: true, run: quiet(mayLoad)},
		{name: "cgroup2", bad: Fail, fix: "mount it: `mount -t cgroup2 none /sys/fs/cgroup`, or next to cgroup v1: " +
			"`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`", run: Cgroup2},
		{name: "cgroup2 own", bad: Fail, fix: "run as root, or under `systemd-run --user --scope -p Delegate=yes`; in a container, mount /sys/fs/cgroup writable", run: cgroupWritable},
		{name: "bpffs", bad: Fail, fix: "as root: `mount -t bpf -o mode=700 bpf " + bpfDir + "`", run: func() (string, error) { return bpffsUsable(bpfDir) }},
		{name: "memlock", bad: Fail, bpf: true, fix: "`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the unit", run: memlock},
		{name: "lockdown", bad: Fail, fix: "boot without lockdown=confidentiality: it forbids BPF to read kernel memory (integrity is fine)",
			run: func() (string, error) { return lockdown(os.DirFS("/sys/kernel/security")) }},
		{name: "jit", bad: Warn, bpf: true, detail: "programs are compiled", fix: "`sysctl -w net.core.bpf_jit_enable=1`; without it shunt is slower than the kernel's own path", run: quiet(jit)},

		progType("sock_ops", ebpf.SockOps, Fail, "accel: sees connections begin and end", rebuild),
		progType("sk_msg", ebpf.SkMsg, Fail, "accel: redirects messages", rebuild),
		{name: "program cgroup/sock", bad: Fail, bpf: true, detail: "accel: sees sockets released", fix: rebuild, run: quiet(sockRelease)},
		progType("raw_tracepoint", ebpf.RawTracepoint, Warn, "accel: proof of the reader, see guard G5", "boot a kernel built with CONFIG_BPF_EVENTS; see guard G5"),
		progType("sched_cls", ebpf.SchedCLS, Warn, "filter in tc; accel: see guard G6", "boot a kernel built with CONFIG_NET_CLS_BPF; see guard G6"),
		progType("xdp", ebpf.XDP, Warn, "filter and balance before the stack", "boot a kernel built with CONFIG_BPF_SYSCALL; accel works without"),
		progType("netfilter", ebpf.Netfilter, Warn, "filter inside netfilter", "kernel 6.4 or newer with CONFIG_NETFILTER_BPF_LINK; accel works without"),
		{name: "fentry", bad: Warn, bpf: true, detail: "tracing programs attach", run: quiet(tracing),
			fix: "nothing to do: raw tracepoints serve, see guard G5 splice; to have fentry, use a kernel with CONFIG_DEBUG_INFO_BTF that allows tracing programs"},

		{name: "map sockhash", bad: Fail, bpf: true, detail: "accel: finds the peer", fix: rebuild, run: quiet(func() error { return features.HaveMapType(ebpf.SockHash) })},
		{name: "map ringbuf", bad: Fail, bpf: true, detail: "events reach user space", fix: "kernel 5.8 or newer", run: quiet(func() error { return features.HaveMapType(ebpf.RingBuf) })},
		helper("sk_msg", ebpf.SkMsg, asm.FnMsgRedirectHash, "msg_redirect_hash", rebuild),
		helper("sock_ops", ebpf.SockOps, asm.FnSockHashUpdate, "sock_hash_update", rebuild),
		helper("sock_ops", ebpf.SockOps, asm.FnGetNetnsCookie, "get_netns_cookie", "kernel 5.15 or newer: without it, equal addresses in two network namespaces cannot be told apart"),
		{name: "kfunc bpf_rdonly_cast", bad: Fail, bpf: true, detail: "callable from sk_msg: accel reads the peer's state with it", run: quiet(rdonlyCast),
			fix: "kernel 6.2 or newer (Debian 12: linux-image-amd64 from backports)"},
		{name: "sockmap link", bad: Warn, bpf: true, detail: "available; accel attaches to the map itself, which every kernel can", run: quiet(sockmapLink),
			fix: "nothing to do: accel attaches to the map itself (PROG_ATTACH)"},

		{name: "guard G5", bad: Fail, bpf: true, detail: "reader proof: raw tracepoint sock_recv_length attaches", fix: "kernel 6.3 or newer, or `--accept G5`", run: quiet(readerProof)},
		{name: "guard G5 splice", bad: Fail, bpf: true, fix: "boot a kernel built with CONFIG_BPF_EVENTS and CONFIG_INET_DIAG_DESTROY", run: spliceGuard},
		{name: "guard G6", bad: Fail, bpf: true, detail: "closing with unread data: TCX attaches", fix: "kernel 6.6 or newer, or `--accept G6`", run: quiet(tcx)},

		{name: "fionread", bad: Warn, bpf: true, detail: "right on joined sockets", run: quiet(CheckFIONREAD),
			fix: "programs that go by FIONREAD (nginx, Java's available()) may stall at bytes that spill, or on a port's first connection: use a kernel with 04af4efde58a, or for them `--accept G5 --max-queue 65536`"},

		{name: "btf", bad: Fail, detail: "/sys/kernel/btf/vmlinux", fix: btfOn, run: quiet(func() error { _, err := kernelBTF(); return err })},
		field("sk_psock", "ingress_msg", Fail, "accel: the queue of redirected messages", btfOn),
		field("sk_psock", "msg_tot_len", Warn, "accel: the length of that queue", "nothing to do: the queue's length is counted by message; newer kernels keep it in bytes"),
		field("tcp_sock", "copied_seq", Fail, "accel: what the reader has consumed", btfOn),
		field("tcp_sock", "write_seq", Fail, "accel: what the writer has sent", btfOn),
	}
}

func progType(name string, t ebpf.ProgramType, bad Status, detail, fix string) probe {
	return probe{name: "program " + name, bad: bad, bpf: true, detail: detail, fix: fix, run: quiet(func() error { return features.HaveProgramType(t) })}
}

func helper(prog string, t ebpf.ProgramType, fn asm.BuiltinFunc, name, fix string) probe {
	return probe{name: "helper " + name, bad: Fail, bpf: true, detail: "callable from " + prog, fix: fix, run: quiet(func() error { return features.HaveProgramHelper(t, fn) })}
}

func field(structName, name string, bad Status, detail, fix string) probe {
	return probe{name: "btf " + structName + "." + name, bad: bad, detail: detail, fix: fix, run: quiet(func() error { return findField(structName, name) })}
}

// quiet is for a probe whose success needs no words of its own.
func quiet(run func() error) func() (string, error) {
	return func() (string, error) { return "", run() }
}

func capabilities() error {
	if m := MissingCapabilities(); len(m) > 0 {
		return errors.New("missing: " + strings.Join(m, ", "))
	}
	return nil
}

// lockdown reads the file of that name; the mode in force is in brackets.
func lockdown(securityfs fs.FS) (string, error) {
	text, err := fs.ReadFile(securityfs, "lockdown")
	if errors.Is(err, fs.ErrNotExist) {
		return "not in use", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the lockdown mode: %w", err)
	}
	_, rest, _ := strings.Cut(string(text), "[")
	mode, _, _ := strings.Cut(rest, "]")
	if mode == "confidentiality" {
		return "", errors.New("mode confidentiality")
	}
	return "mode " + mode, nil
}
