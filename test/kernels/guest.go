// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	qemu        = "qemu-system-x86_64"
	memory      = "4096" // MiB of a guest, of which TCP may have a tenth: the control of guarantee G3 queues 256 MiB
	bootTime    = time.Minute
	lastLines   = 20       // of a console, in a report
	maxArtifact = 64 << 20 // bytes of one file from a guest
)

// outcome is what is left of a guest.
type outcome struct {
	log     string            // what the suite printed
	console string            // what the kernel printed
	files   map[string][]byte // what the suite left in out; without "status", the guest died
	late    bool              // it was ended because its time was over
}

// boot runs a guest until it powers off, or until its time is over. Its output
// stays in dir for people to read.
func boot(parent context.Context, k kernel, initrd, dir, name string, limit time.Duration) (outcome, error) {
	var o outcome
	base := filepath.Join(dir, name)
	log, err := os.Create(base + ".log")
	if err != nil {
		return o, fmt.Errorf("keep the log of a guest: %w", err)
	}
	defer log.Close() //nolint:errcheck // read again below
	ctx, cancel := context.WithTimeout(parent, limit+bootTime)
	defer cancel()
	// With thread=multi and two CPUs a guest oopses now and then.
	cmd := exec.CommandContext(ctx, qemu, "-machine", "pc", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-serial", "file:"+base+".console", "-serial", "file:"+base+".tar",
		"-kernel", k.vmlinuz, "-initrd", initrd, "-append", "console=ttyS1 quiet loglevel=4 panic=-1 oops=panic")
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = log, &stderr
	cmd.WaitDelay = 5 * time.Second
	runErr := cmd.Run()
	if err := parent.Err(); err != nil {
		return o, fmt.Errorf("not run to its end: %w", err)
	}
	o.late = ctx.Err() != nil
	if runErr != nil && !o.late {
		return o, fmt.Errorf("%s: %w: %s", qemu, runErr, strings.TrimSpace(stderr.String()))
	}
	text, err := os.ReadFile(base + ".log")
	if err != nil {
		return o, fmt.Errorf("read the log of a guest: %w", err)
	}
	console, err := os.ReadFile(base + ".console")
	if err != nil {
		return o, fmt.Errorf("read the console of a guest: %w", err)
	}
	o.log, o.console = string(text), strings.ReplaceAll(string(console), "\r", "")
	archive, err := os.ReadFile(base + ".tar")
	if err != nil {
		return o, fmt.Errorf("read what a guest left: %w", err)
	}
	o.files = artifacts(archive)
	return o, nil
}

// artifacts takes what it can: a guest that dies leaves a torn archive, or none.
func artifacts(archive []byte) map[string][]byte {
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err != nil {
			return files
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(r, maxArtifact))
		if err != nil {
			return files
		}
		files[strings.TrimPrefix(h.Name, "out/")] = data
	}
}

// status of the suite; false if the guest did not live to tell.
func (o outcome) status() (string, bool) {
	s, ok := o.files["status"]
	return strings.TrimSpace(string(s)), ok && len(s) > 0
}

// trouble matches what a kernel says first when it dies.
var trouble = regexp.MustCompile(`(?m)^.*(BUG:|Oops|Kernel panic|general protection|Out of memory|soft lockup|rcu.*stall).*$`)

// died tells what is known about a guest that left no status.
func (o outcome) died() string {
	first := trouble.FindString(o.console)
	if first != "" {
		first += "\n…\n"
	}
	return tail(o.log) + "\nconsole:\n" + first + tail(o.console)
}

// tail is the end of a console or log.
func tail(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-lastLines):], "\n")
}
