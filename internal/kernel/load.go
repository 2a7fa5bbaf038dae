// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The functions below load the smallest program that shows a feature, attach it
// for a moment where that is the question, and leave nothing behind.

// load returns a program that does nothing but return verdict.
func load(spec ebpf.ProgramSpec, verdict int32) (*ebpf.Program, error) {
	spec.Name = "shunt_probe"
	spec.License = "Dual BSD/GPL"
	if spec.Instructions == nil {
		spec.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}
	}
	return ebpf.NewProgramWithOptions(&spec, ebpf.ProgramOptions{LogDisabled: true})
}

// attach loads spec, gives the program to the link, and takes both away again.
func attach(spec ebpf.ProgramSpec, verdict int32, to func(*ebpf.Program) (link.Link, error)) error {
	prog, err := load(spec, verdict)
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := to(prog)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return l.Close()
}

// mayLoad tells a refusal of everything from the lack of something: capabilities
// inside a user namespace count for nothing here.
func mayLoad() error {
	_ = RemoveMemlock() // has a check of its own; here it would only hide the answer
	prog, err := load(ebpf.ProgramSpec{Type: ebpf.SockOps}, 0)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("the kernel refuses all programs: %w", err)
	}
	if err != nil {
		return nil // that program's own check says why
	}
	return prog.Close()
}

// sockRelease asks for the attach type too: it is newer than the program type.
func sockRelease() error {
	prog, err := load(ebpf.ProgramSpec{Type: ebpf.CGroupSock, AttachType: ebpf.AttachCgroupInetSockRelease}, 1)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("cgroup/sock_release: %w", ebpf.ErrNotSupported)
	}
	if err != nil {
		return err
	}
	return prog.Close()
}

// tracing attaches to a function that accel would watch: some kernels accept the
// type and refuse only the load or the attachment.
func tracing() error {
	spec := ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: "tcp_splice_read"}
	return attach(spec, 0, func(p *ebpf.Program) (link.Link, error) {
		return link.AttachTracing(link.TracingOptions{Program: p})
	})
}

// CanTrace reports whether programs of type tracing load and attach here.
func CanTrace() bool { return tracing() == nil }

// spliceGuard says how readers that turn to splice(2) are seen.
func spliceGuard() (string, error) {
	if CanTrace() {
		return "splice readers are seen by fentry on tcp_splice_read", nil
	}
	err := attach(ebpf.ProgramSpec{Type: ebpf.RawTracepoint}, 0, func(p *ebpf.Program) (link.Link, error) {
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: "tcp_rcv_space_adjust", Program: p})
	})
	return "splice readers are seen by the raw tracepoint tcp_rcv_space_adjust", err
}

// readerProof attaches where a reader of a TCP socket is seen using recvmsg.
func readerProof() error {
	return attach(ebpf.ProgramSpec{Type: ebpf.RawTracepoint}, 0, func(p *ebpf.Program) (link.Link, error) {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sock_recv_length", Program: p})
		if errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("tracepoint sock_recv_length: %w", ebpf.ErrNotSupported)
		}
		return l, err
	})
}

// tcx attaches to the way out of lo; every packet goes on to the next program.
func tcx() error {
	const next = -1 // TCX_NEXT
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	return attach(ebpf.ProgramSpec{Type: ebpf.SchedCLS}, next, func(p *ebpf.Program) (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: lo.Index, Program: p, Attach: ebpf.AttachTCXEgress})
	})
}

// sockmapLink attaches a verdict program to an empty SOCKHASH through a link.
func sockmapLink() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockHash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	spec := ebpf.ProgramSpec{Type: ebpf.SkMsg, AttachType: ebpf.AttachSkMsgVerdict}
	return attach(spec, 1, func(p *ebpf.Program) (link.Link, error) {
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: m.FD(), Program: p, Attach: ebpf.AttachSkMsgVerdict})
		if errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("sockmap link: %w", ebpf.ErrNotSupported)
		}
		return l, err
	})
}

// rdonlyCast calls the kfunc bpf_rdonly_cast from an sk_msg program.
func rdonlyCast() error {
	spec, err := kernelBTF()
	if err != nil {
		return fmt.Errorf("load the kernel's BTF: %w", err)
	}
	var kfunc *btf.Func
	var sock *btf.Struct
	if err := errors.Join(spec.TypeByName("bpf_rdonly_cast", &kfunc), spec.TypeByName("tcp_sock", &sock)); err != nil {
		return fmt.Errorf("kfunc bpf_rdonly_cast: %w", ebpf.ErrNotSupported)
	}
	kfuncID, err := spec.TypeID(kfunc)
	if err != nil {
		return fmt.Errorf("number of bpf_rdonly_cast: %w", err)
	}
	sockID, err := spec.TypeID(sock)
	if err != nil {
		return fmt.Errorf("number of tcp_sock: %w", err)
	}
	prog, err := load(ebpf.ProgramSpec{Type: ebpf.SkMsg, Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.Mov.Imm(asm.R2, int32(sockID)),
		{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoKfuncCall, Constant: int64(kfuncID)},
		asm.Mov.Imm(asm.R0, 1),
		asm.Return(),
	}}, 1)
	if err != nil {
		return err
	}
	return prog.Close()
}

// jit asks for the machine code of a program: unlike the sysctl, that is visible
// in every network namespace.
func jit() error {
	prog, err := load(ebpf.ProgramSpec{Type: ebpf.SocketFilter}, 0)
	if err != nil {
		return err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return fmt.Errorf("describe a program: %w", err)
	}
	if _, err := info.JitedSize(); err != nil {
		return errors.New("programs are interpreted")
	}
	return nil
}

// ErrFIONREAD is the answer of [CheckFIONREAD] on a kernel that miscounts.
var ErrFIONREAD = errors.New("FIONREAD is wrong")

// CheckFIONREAD asks a socket in a sockmap how many bytes wait in it that came
// through the stack. Some kernels count only redirected ones there (from
// 929e30f93125 until 04af4efde58a); the error says so.
func CheckFIONREAD() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockHash, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	prog, err := load(ebpf.ProgramSpec{Type: ebpf.SkMsg}, 1)
	if err != nil {
		return err
	}
	defer prog.Close()
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: m.FD(), Program: prog, Attach: ebpf.AttachSkMsgVerdict}); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	socket := func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			fds = append(fds, fd)
		}
		return fd, err
	}
	listener, err := socket()
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(listener, 1)); err != nil {
		return fmt.Errorf("listen on loopback: %w", err)
	}
	addr, err := unix.Getsockname(listener)
	if err != nil {
		return err
	}
	client, err := socket()
	if err != nil {
		return err
	}
	if err := unix.Connect(client, addr); err != nil {
		return fmt.Errorf("connect on loopback: %w", err)
	}
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return err
	}
	fds = append(fds, server)
	if err := m.Put(uint32(0), uint64(server)); err != nil {
		return fmt.Errorf("put a socket into a sockmap: %w", err)
	}
	const text = "shunt"
	if _, err := unix.Write(client, []byte(text)); err != nil {
		return err
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(server), Events: unix.POLLIN}}, 1000); err != nil {
		return err
	}
	n, err := unix.IoctlGetInt(server, unix.SIOCINQ)
	if err != nil {
		return err
	}
	if n != len(text) {
		return fmt.Errorf("%w: a joined socket reports %d of %d bytes that came through the stack", ErrFIONREAD, n, len(text))
	}
	return nil
}
