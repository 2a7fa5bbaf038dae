// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// skip fails instead where the machine was said to be able to run everything.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("SHUNT_REQUIRE_ALL") == "1" && os.Getuid() == 0 {
		t.Fatal("SHUNT_REQUIRE_ALL=1, but: " + reason)
	}
	t.Skip(reason)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 || len(MissingCapabilities()) > 0 {
		skip(t, "needs root with all capabilities")
	}
}

const (
	v1Line      = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
	hybridLine  = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
	unifiedLine = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:7 - cgroup2 cgroup2 rw,nsdelegate\n"
	partLine    = "99 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup ro\n"
)

func TestFindCgroup2(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want cgroupMount
		err  error
	}{
		"unified":             {unifiedLine, cgroupMount{"/", "/sys/fs/cgroup"}, nil},
		"hybrid":              {v1Line + hybridLine, cgroupMount{"/", "/sys/fs/cgroup/unified"}, nil},
		"part":                {partLine, cgroupMount{"/docker/abc", "/sys/fs/cgroup"}, nil},
		"whole before part":   {partLine + hybridLine, cgroupMount{"/", "/sys/fs/cgroup/unified"}, nil},
		"escapes":             {`41 31 0:38 / /mnt/a\040b\134c rw - cgroup2 none rw`, cgroupMount{"/", `/mnt/a b\c`}, nil},
		"cgroup2 only a name": {"1 2 0:3 / /cgroup2 rw - tmpfs cgroup2 rw\n", cgroupMount{}, ErrNoCgroup2},
		"v1 only":             {v1Line, cgroupMount{}, ErrNoCgroup2},
		"empty and torn":      {"\n1 2 3 -\n - cgroup2 \n", cgroupMount{}, ErrNoCgroup2},
	} {
		got, err := findCgroup2(strings.NewReader(c.in))
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: got %+v, %v; want %+v, %v", name, got, err, c.want, c.err)
		}
	}
}

func TestOwnCgroup(t *testing.T) {
	for _, c := range []struct{ root, cgroups, want string }{
		{"/", "0::/\n", "/cg"},
		{"/", "9:name=systemd:/x\n0::/a.slice/b.scope\n", "/cg/a.slice/b.scope"},
		{"/docker/abc", "0::/docker/abc\n", "/cg"},
		{"/docker/abc", "0::/docker/abc/child\n", "/cg/child"},
		{"/docker/abc", "0::/docker/abcdef\n", ""},
		{"/docker/abc", "0::/\n", ""},
		{"/", "0::/../other\n", ""},
		{"/../..", "0::/\n", ""},
		{"/", "9:name=systemd:/x\n", ""},
	} {
		got, err := ownCgroup(cgroupMount{c.root, "/cg"}, strings.NewReader(c.cgroups))
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("root %s, cgroups %q: got %q, %v; want %q", c.root, c.cgroups, got, err, c.want)
		}
	}
}

func TestOwnCgroup2HasThisProcess(t *testing.T) {
	dir, err := OwnCgroup2()
	if errors.Is(err, ErrNoCgroup2) {
		skip(t, "no cgroup2 here")
	}
	if err != nil {
		t.Fatal(err)
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(strings.Fields(string(procs)), fmt.Sprint(os.Getpid())) {
		t.Errorf("%s does not list process %d", dir, os.Getpid())
	}
}

func TestMissingCapabilities(t *testing.T) {
	bits := func(caps ...uint) (set uint64) {
		for _, c := range caps {
			set |= 1 << c
		}
		return set
	}
	for _, c := range []struct {
		set  uint64
		want []string
	}{
		{0, []string{"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"}},
		{bits(unix.CAP_SYS_ADMIN), []string{"CAP_NET_ADMIN"}},
		{bits(unix.CAP_BPF, unix.CAP_NET_ADMIN), []string{"CAP_PERFMON"}},
		{bits(unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON), nil},
	} {
		if got := missing(c.set); !slices.Equal(got, c.want) {
			t.Errorf("%x: got %v, want %v", c.set, got, c.want)
		}
	}
}

func TestLockdown(t *testing.T) {
	for text, ok := range map[string]bool{
		"[none] integrity confidentiality\n": true,
		"none [integrity] confidentiality\n": true,
		"none integrity [confidentiality]\n": false,
	} {
		got, err := lockdown(fstest.MapFS{"lockdown": {Data: []byte(text)}})
		if (err == nil) != ok {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	if got, err := lockdown(fstest.MapFS{}); got != "not in use" || err != nil {
		t.Errorf("no file: got %q, %v", got, err)
	}
}

func TestBTFHas(t *testing.T) {
	if _, err := kernelBTF(); err != nil {
		skip(t, "this kernel has no BTF: "+err.Error())
	}
	for _, c := range []struct {
		structName, field string
		want              bool
	}{
		{"tcp_sock", "copied_seq", true},
		{"sk_psock", "ingress_msg", true},
		{"sock_common", "skc_daddr", true}, // in an anonymous struct of an anonymous union
		{"tcp_sock", "no_such_field", false},
		{"no_such_struct", "copied_seq", false},
	} {
		if got := BTFHas(c.structName, c.field); got != c.want {
			t.Errorf("BTFHas(%s, %s) = %v", c.structName, c.field, got)
		}
	}
}

func TestRun(t *testing.T) {
	give := func(detail string, err error) func() (string, error) {
		return func() (string, error) { return detail, err }
	}
	ok, lacks := give("", nil), give("", fmt.Errorf("x: %w", ebpf.ErrNotSupported))
	for name, c := range map[string]struct {
		in   []probe
		want []Check
	}{
		"pass":          {[]probe{{name: "x", bad: Fail, detail: "d", fix: "f", run: ok}}, []Check{{"x", Pass, "d", ""}}},
		"own detail":    {[]probe{{name: "x", bad: Fail, detail: "d", run: give("found", nil)}}, []Check{{"x", Pass, "found", ""}}},
		"not supported": {[]probe{{name: "x", bad: Warn, fix: "f", run: lacks}}, []Check{{"x", Warn, "not in this kernel", "f"}}},
		"error":         {[]probe{{name: "x", bad: Fail, fix: "f", run: give("", unix.EPERM)}}, []Check{{"x", Fail, "operation not permitted", "f"}}},
		"closed gate": {
			[]probe{{name: "x", bad: Fail, fix: "f", gate: true, run: lacks}, {name: "y", bpf: true}, {name: "z", bpf: true, gate: true}, {name: "w", detail: "d", run: ok}},
			[]Check{{"x", Fail, "not in this kernel", "f"}, {"w", Pass, "d", ""}, {"not checked", Warn, "y, z", "mend what failed above, then ask again"}},
		},
		"open gate": {
			[]probe{{name: "x", bad: Fail, detail: "d", gate: true, run: ok}, {name: "y", bpf: true, detail: "d", run: ok}},
			[]Check{{"x", Pass, "d", ""}, {"y", Pass, "d", ""}},
		},
	} {
		if got := run(c.in); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}

func TestProbe(t *testing.T) {
	mounted, err := isBPFFS(bpfDir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range Probe() {
		t.Logf("%s %s: %s (%s)", c.Status, c.Name, c.Detail, c.Fix)
		if seen[c.Name] {
			t.Errorf("%s: name used twice", c.Name)
		}
		seen[c.Name] = true
		if c.Detail == "" || (c.Status == Pass) != (c.Fix == "") {
			t.Errorf("%s: needs a detail, and a fix if and only if it did not pass: %+v", c.Name, c)
		}
	}
	if now, _ := isBPFFS(bpfDir); now != mounted {
		t.Errorf("Probe changed the machine: bpffs mounted %v, then %v", mounted, now)
	}
}

// TestProbesCanSayNo asks the loaders for what no kernel has.
func TestProbesCanSayNo(t *testing.T) {
	needRoot(t)
	if p, err := load(ebpf.ProgramSpec{Type: ebpf.ProgramType(0xfff)}, 0); err == nil {
		_ = p.Close()
		t.Error("a program type that does not exist was loaded")
	}
	if err := findField("tcp_sock", "no_such_field"); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("no_such_field: %v", err)
	}
}

func TestEnsureBPFFS(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "made", "bpf")
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if detail, err := bpffsUsable(dir); err != nil || !strings.Contains(detail, "not mounted") {
		t.Fatalf("before: %q, %v", detail, err)
	}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if err := EnsureBPFFS(dir); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if ok, err := isBPFFS(dir); !ok || err != nil {
		t.Fatalf("after: %v, %v", ok, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(mounts), " "+dir+" "); n != 1 {
		t.Errorf("mounted %d times", n)
	}
}

func TestInNetns(t *testing.T) {
	needRoot(t)
	home, err := NetnsCookie()
	if err != nil {
		skip(t, err.Error())
	}
	// A namespace lives as long as the thread that made it.
	path, end := make(chan string), make(chan struct{})
	t.Cleanup(func() { close(end) })
	go func() {
		runtime.LockOSThread() // and never unlocked: Go ends the thread
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
		}
		path <- fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		<-end
	}()
	ns := <-path

	var inside uint64
	if err := InNetns(ns, func() (err error) { inside, err = NetnsCookie(); return err }); err != nil {
		t.Fatal(err)
	}
	if inside == 0 || inside == home {
		t.Errorf("cookie inside %d, outside %d", inside, home)
	}
	if again, err := NetnsCookie(); again != home || err != nil {
		t.Errorf("cookie afterwards %d, %v; want %d", again, err, home)
	}
	if err := InNetns(ns, func() error { return os.ErrExist }); !errors.Is(err, os.ErrExist) {
		t.Errorf("the function's error got lost: %v", err)
	}
	if err := InNetns(ns, func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error from a function that did not return")
	}
	if err := InNetns("/proc/self/no-such-ns", func() error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing namespace: %v", err)
	}
	if err := InNetns("/proc/self/ns/uts", func() error { return nil }); !errors.Is(err, unix.EINVAL) {
		t.Errorf("not a network namespace: %v", err)
	}
}
