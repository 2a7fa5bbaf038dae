// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// helperArg is the first argument with which this binary is a command that the
// tests run under shunt. Its sockets are package net's: non-blocking.
const helperArg = "e2e-helper"

func helperCommand(name string, args ...string) []string {
	return append([]string{self, helperArg, name}, args...)
}

func helper(name string, args []string) error {
	switch name {
	case "identity":
		return identity(args[0])
	case "signals":
		return printSignals()
	case "echo":
		return echo(args)
	case "client":
		return client(args[0])
	case "talk":
		return talk()
	case "transfer":
		return transfer()
	case "tap-talk":
		return tapTalk(args[0])
	case "tap-dial":
		return tapDial()
	case "redis":
		return redis(args)
	case "program":
		return runProgram(args)
	case "nginx":
		return nginx(args)
	}
	return fmt.Errorf("no helper %q", name)
}

func readLines(r io.Reader, to chan<- string) {
	defer close(to)
	for sc := bufio.NewScanner(r); sc.Scan(); {
		to <- sc.Text()
	}
}

// file is what makes two descriptors the same file.
type file struct{ Dev, Ino uint64 }

func fileOf(fd int) file {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return file{}
	}
	return file{st.Dev, st.Ino}
}

// identity writes down all that a command gets from the process that starts it.
func identity(to string) error {
	var nofile, core, stack unix.Rlimit
	dir, err := os.Getwd()
	err = errors.Join(err,
		unix.Getrlimit(unix.RLIMIT_NOFILE, &nofile),
		unix.Getrlimit(unix.RLIMIT_CORE, &core),
		unix.Getrlimit(unix.RLIMIT_STACK, &stack))
	if err != nil {
		return err
	}
	sid, _ := unix.Getsid(0)
	b, err := json.MarshalIndent(map[string]any{
		"args":   os.Args,
		"env":    os.Environ(),
		"dir":    dir,
		"files":  []file{fileOf(0), fileOf(1), fileOf(2), fileOf(3), fileOf(4)},
		"limits": []unix.Rlimit{nofile, core, stack},
		"umask":  unix.Umask(0),
		"ids":    []int{os.Getuid(), os.Geteuid(), os.Getgid()},
		// The same group and session: its own or its starter's.
		"group":   unix.Getpgrp() == os.Getpid() || unix.Getpgrp() == os.Getppid(),
		"session": sid == os.Getpid() || sid == os.Getppid(),
	}, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// printSignals prints the signals it gets, and exits with 7 on SIGUSR2.
func printSignals() error {
	got := make(chan os.Signal, 64)
	signal.Notify(got, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH)
	fmt.Println("ready")
	for {
		select {
		case s := <-got:
			fmt.Println(unix.SignalName(s.(syscall.Signal)))
			if s == unix.SIGUSR2 {
				os.Exit(7)
			}
		case <-time.After(patience):
			return errors.New("no signal")
		}
	}
}

// echo talks over connections, one after the other, and checks every answer.
func echo(args []string) error {
	var (
		flags       = flag.NewFlagSet("echo", flag.ContinueOnError)
		port        = flags.Int("port", 0, "port of 127.0.0.1 to listen on")
		connections = flags.Int("connections", 1, "")
		messages    = flags.Int("messages", 1, "messages of each connection, each way")
		size        = flags.Int("size", 64, "bytes of a message")
		prove       = flags.Bool("prove", false, "both ends read once before the first message")
		grandchild  = flags.Bool("grandchild", false, "the client is a child of a shell")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for range *connections {
		var c net.Conn
		var child *exec.Cmd
		if *grandchild {
			child = exec.Command("sh", append([]string{"-c", `"$@"; exit $?`, "sh"}, helperCommand("client", l.Addr().String())...)...)
			child.Stderr = os.Stderr
			if err := child.Start(); err != nil {
				return err
			}
		} else if c, err = net.Dial("tcp", l.Addr().String()); err != nil {
			return err
		}
		s, err := l.Accept()
		if err != nil {
			return err
		}
		if *prove {
			for _, c := range []net.Conn{c, s} {
				if err := readNothing(c.(*net.TCPConn)); err != nil {
					return err
				}
			}
		}
		served := make(chan error, 1)
		go func() {
			_, err := io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{s}, make([]byte, *size)) // hidden, or it would splice
			served <- errors.Join(err, s.Close())
		}()
		if *grandchild {
			err = child.Wait()
		} else {
			err = errors.Join(exchange(c, *messages, *size, 0), c.Close())
		}
		if err = errors.Join(err, <-served); err != nil {
			return err
		}
	}
	return nil
}

// readNothing makes one receive call that finds nothing.
func readNothing(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	readErr := errors.New("not called")
	err = raw.Read(func(fd uintptr) bool {
		_, readErr = unix.Read(int(fd), make([]byte, 1))
		return true
	})
	if err == nil && !errors.Is(readErr, unix.EAGAIN) {
		err = fmt.Errorf("read nothing: %w", readErr)
	}
	return err
}

// exchange sends messages that it has echoed, and compares.
func exchange(c net.Conn, messages, size, seed int) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	out, in := make([]byte, size), make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	for i := range messages {
		r.Read(out) //nolint:errcheck // never fails
		if _, err := c.Write(out); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, in); err != nil {
			return err
		}
		if !bytes.Equal(in, out) {
			return fmt.Errorf("message %d came back changed", i)
		}
	}
	return nil
}

const clientMessages, clientSize = 100, 64

func client(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	return errors.Join(exchange(c, clientMessages, clientSize, 1), c.Close())
}

// talk keeps one connection between its own two ends, and exchanges
// talkMessages messages over it for each line on stdin.
func talk() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	s, err := l.Accept()
	if err != nil {
		return err
	}
	go io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{s}, make([]byte, clientSize)) //nolint:errcheck // the other end tells
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for l := range strings.Lines(string(cgroup)) {
		if path, ok := strings.CutPrefix(l, "0::"); ok {
			fmt.Print(path)
		}
	}
	in := bufio.NewScanner(os.Stdin)
	for n := 1; in.Scan(); n++ {
		if err := exchange(c, talkMessages, clientSize, n); err != nil {
			return err
		}
		fmt.Printf("exchange %d done\n", n)
	}
	return nil
}

const talkMessages = 500

const (
	transferSize = 512 << 20 // bytes
	transferGate = transferSize / 4 * 3
)

// transfer sends transferSize bytes between its own two ends. It says when a
// quarter has arrived, waits at the gate for a line on stdin, and prints what
// each end saw.
func transfer() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	gate := bufio.NewScanner(os.Stdin)
	sent := make(chan string, 1)
	sendErr := make(chan error, 1)
	go func() {
		sendErr <- func() error {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			r, h := rand.NewChaCha8([32]byte{1}), sha256.New()
			buf := make([]byte, 64<<10)
			for n := 0; n < transferSize; n += len(buf) {
				if n == transferGate {
					fmt.Println("gate")
					gate.Scan()
				}
				r.Read(buf) //nolint:errcheck // never fails
				h.Write(buf)
				if _, err := c.Write(buf); err != nil {
					return fmt.Errorf("send at %d: %w", n, err)
				}
			}
			sent <- hex.EncodeToString(h.Sum(nil))
			return nil
		}()
	}()
	s, err := l.Accept()
	if err != nil {
		return err
	}
	h, buf, total := sha256.New(), make([]byte, 64<<10), 0
	for quarter := false; ; {
		n, err := s.Read(buf)
		h.Write(buf[:n])
		if total += n; total > transferSize/4 && !quarter {
			quarter = true
			fmt.Println("quarter")
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("receive at %d: %w", total, err)
		}
	}
	if err := <-sendErr; err != nil {
		return err
	}
	fmt.Printf("sent %s\nreceived %d %s\n", <-sent, total, hex.EncodeToString(h.Sum(nil)))
	return nil
}

// server runs a program until stop, with its output in a buffer that is shown
// if it fails. ready is a line of its output to wait for, or empty.
func server(ready string, argv ...string) (stop func() error, err error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var (
		mu   sync.Mutex
		said []string
	)
	up, ended := make(chan bool, 1), make(chan error, 1)
	go func() {
		for sc := bufio.NewScanner(out); sc.Scan(); {
			mu.Lock()
			said = append(said, sc.Text())
			mu.Unlock()
			if ready != "" && strings.Contains(sc.Text(), ready) {
				select {
				case up <- true:
				default: // it says so again and again
				}
			}
		}
		ended <- cmd.Wait()
	}()
	fail := func(why string, err error) error {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Errorf("%s: %s: %w; it said: %s", argv[0], why, err, strings.Join(slices.Clone(said), "\n"))
	}
	if ready != "" {
		select {
		case <-up:
		case err := <-ended:
			return nil, fail("ended early", err)
		case <-time.After(patience):
			cmd.Process.Kill() //nolint:errcheck // fails anyway
			return nil, fail("not ready", os.ErrDeadlineExceeded)
		}
	}
	return func() error {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			return fail("stop", err)
		}
		select {
		case err := <-ended:
			if err != nil {
				return fail("ended badly", err)
			}
			return nil
		case <-time.After(patience):
			cmd.Process.Kill() //nolint:errcheck // fails anyway
			return fail("does not end", os.ErrDeadlineExceeded)
		}
	}, nil
}
