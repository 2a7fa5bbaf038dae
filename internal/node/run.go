// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// NotStartedError says that the command could not be started. Status is what a
// shell would exit with: 127 not found, 126 not executable.
type NotStartedError struct {
	Status int
	Err    error
}

func (e *NotStartedError) Error() string { return e.Err.Error() }
func (e *NotStartedError) Unwrap() error { return e.Err }

// FindCommand resolves argv[0] as a shell would.
func FindCommand(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, unix.EISDIR):
		return "", &NotStartedError{126, fmt.Errorf("%s: is a directory", name)}
	case errors.Is(err, os.ErrPermission):
		return "", &NotStartedError{126, fmt.Errorf("%s: permission denied", name)}
	default:
		return "", &NotStartedError{127, fmt.Errorf("%s: command not found", name)}
	}
}

// Run runs argv in the session with this process's stdio, environment and
// working directory, passes signals on, and returns how it ended.
func (s *Session) Run(path string, argv []string) (syscall.WaitStatus, error) {
	// Before the start: a signal that comes in between must not kill this
	// process and leave the command alone.
	signals := make(chan os.Signal, 64)
	for _, sig := range passedOn {
		// What our parent ignores (nohup, a shell's background job) the command
		// has to ignore too; a handler here would take that from it.
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	defer signal.Stop(signals)

	proc, err := os.StartProcess(path, argv, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: s.CgroupFD()},
	})
	if err != nil {
		status := 126
		if errors.Is(err, os.ErrNotExist) {
			status = 127
		}
		return 0, &NotStartedError{status, fmt.Errorf("start %s: %w", argv[0], err)}
	}

	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case sig := <-signals:
				if fromTerminal(sig) {
					continue
				}
				proc.Signal(sig) //nolint:errcheck // it may just have ended
			case <-done:
				return
			}
		}
	}()
	state, err := proc.Wait()
	if err != nil {
		return 0, fmt.Errorf("wait for %s: %w", argv[0], err)
	}
	return state.Sys().(syscall.WaitStatus), nil
}

// passedOn are the signals a user may mean for the command. Job control
// (SIGTSTP, SIGCONT) reaches it through the terminal's process group.
var passedOn = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM,
	unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH,
}

// fromTerminal: the terminal sends these to its whole foreground process
// group, so the command, being in it, has them already.
func fromTerminal(sig os.Signal) bool {
	switch sig {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGWINCH, unix.SIGHUP:
	default:
		return false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close() //nolint:errcheck // nothing was written
	fg, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && fg == unix.Getpgrp()
}
