// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const busybox = "/bin/busybox" // Debian's busybox-static

// wanted are the modules that the tests may need; what a kernel has not, or has
// built in, it is asked nothing about.
var wanted = []string{
	"veth", "dummy", "tun", "bridge", "ifb", "virtio_net",
	"sch_ingress", "sch_fq", "cls_bpf", "act_bpf", "nf_tables", "tls",
	"tcp_diag", // SOCK_DESTROY; the kernel would load it by itself, but not here
}

// cpio writes the "newc" format that the kernel unpacks, without compression:
// an emulated CPU is slow at the opposite.
type cpio struct {
	w   io.Writer
	n   int64
	ino int
	err error
}

const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeChar = 0o020000
)

func (c *cpio) write(b []byte) {
	if c.err == nil {
		var n int
		n, c.err = c.w.Write(b)
		c.n += int64(n)
	}
}

func (c *cpio) align(to int64) {
	if rest := c.n % to; rest != 0 {
		c.write(make([]byte, to-rest))
	}
}

func (c *cpio) entry(name string, mode uint32, data []byte, major, minor int) {
	c.ino++
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name))
	c.align(4)
	c.write(data)
	c.align(4)
}

func (c *cpio) dir(name string)                            { c.entry(name, modeDir|0o755, nil, 0, 0) }
func (c *cpio) file(name string, mode uint32, data []byte) { c.entry(name, modeFile|mode, data, 0, 0) }
func (c *cpio) char(name string, mode uint32, maj, min int) {
	c.entry(name, modeChar|mode, nil, maj, min)
}

func (c *cpio) close() error {
	c.entry("TRAILER!!!", 0, nil, 0, 0)
	c.align(512)
	return c.err
}

// loadOrder is the order in which modules must be loaded, from the contents of a
// modules.dep: lines of "FILE: WHAT IT NEEDS…", which depmod writes so that what
// is needed first stands last. Modules that it does not list are left out.
func loadOrder(modulesDep string, wanted []string) []string {
	needs := map[string][]string{}
	byName := map[string]string{}
	for line := range strings.Lines(modulesDep) {
		file, deps, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		needs[file] = strings.Fields(deps)
		byName[moduleName(file)] = file
	}
	var order []string
	add := func(file string) {
		if !slices.Contains(order, file) {
			order = append(order, file)
		}
	}
	for _, name := range wanted {
		file, ok := byName[name]
		if !ok {
			continue
		}
		for _, dep := range slices.Backward(needs[file]) {
			add(dep)
		}
		add(file)
	}
	return order
}

// moduleName is as lsmod says it: files may have dashes instead.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// takeModules copies the wanted modules to dir, decompressed and numbered.
func takeModules(ctx context.Context, base, release, dir string) error {
	if _, err := command(ctx, "", "depmod", "-b", base, release); err != nil {
		return fmt.Errorf("find out what modules need (package kmod): %w", err)
	}
	lib := filepath.Join(base, "lib/modules", release)
	dep, err := os.ReadFile(filepath.Join(lib, "modules.dep"))
	if err != nil {
		return fmt.Errorf("read what modules need: %w", err)
	}
	for i, file := range loadOrder(string(dep), wanted) {
		var data []byte
		if strings.HasSuffix(file, ".xz") {
			data, err = command(ctx, "", "xz", "-dc", filepath.Join(lib, file))
		} else {
			data, err = os.ReadFile(filepath.Join(lib, file))
		}
		if err != nil {
			return fmt.Errorf("take module %s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d-%s.ko", i, moduleName(file))), data, 0o644); err != nil {
			return fmt.Errorf("keep module %s: %w", file, err)
		}
	}
	return nil
}

// initScript: ttyS0 is the test's output, ttyS1 the kernel's console, ttyS2 a tar
// of what the test left in out. No "status" in it means that the guest died.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/job TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /tmp /run /job/out
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf -o mode=700 bpf /sys/fs/bpf
mount -t tracefs none /sys/kernel/tracing
mount -t debugfs none /sys/kernel/debug
for tty in ttyS0 ttyS2; do stty -F /dev/$tty raw -echo; done
for m in /modules/*.ko; do insmod "$m" || echo "init: cannot load $m"; done >/dev/ttyS1 2>&1
ip link set lo up
cd /job
sh /suite.sh </dev/null >/dev/ttyS0 2>&1
echo $? >out/status
tar c out >/dev/ttyS2
poweroff -f
`

// guestFile is a file of the guest; those from the host are read when needed.
type guestFile struct {
	name string
	mode uint32
	from string // file of the host
	data []byte // if there is none
}

// writeInitrd makes a whole initrd at name.
func writeInitrd(name string, k kernel, files []guestFile) (err error) {
	out, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("make an initrd: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	buffered := bufio.NewWriter(out)
	c := &cpio{w: buffered}
	for _, d := range []string{"bin", "dev", "etc", "modules", "proc", "sys", "job"} {
		c.dir(d)
	}
	c.char("dev/console", 0o600, 5, 1) // before devtmpfs is there
	c.char("dev/null", 0o666, 1, 3)
	c.file("init", 0o755, []byte(initScript))
	all := append([]guestFile{{name: "bin/busybox", mode: 0o755, from: busybox}}, files...)
	for _, m := range k.modules {
		all = append(all, guestFile{name: "modules/" + filepath.Base(m), mode: 0o644, from: m})
	}
	for _, f := range all {
		data := f.data
		if f.from != "" {
			if data, err = os.ReadFile(f.from); err != nil {
				return fmt.Errorf("put %s into the initrd: %w", f.name, err)
			}
		}
		c.file(f.name, f.mode, data)
	}
	if err := c.close(); err != nil {
		return fmt.Errorf("write the initrd: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("write the initrd: %w", err)
	}
	return nil
}
