// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
)

// Every reason that the kernel half can count has a name and, where people see
// it, an explanation.
func TestNames(t *testing.T) {
	for r := bpfRefusalREFUSE_NONE + 1; r < bpfRefusalREFUSE_MAX; r++ {
		if name := refusalNames[r]; name == "" || Explain(name) == name {
			t.Errorf("refusal %d is %q, explained as %q", r, name, Explain(name))
		}
	}
	for r := bpfRoute(0); r < bpfRouteROUTE_MAX; r++ {
		name := routeNames[r]
		if name == "" || r != bpfRouteROUTE_REDIRECT && Explain(name) == name {
			t.Errorf("route %d is %q, explained as %q", r, name, Explain(name))
		}
	}
	for l := bpfLeaveLEAVE_NONE + 1; l < bpfLeaveLEAVE_MAX; l++ {
		if leaveNames[l] == "" {
			t.Errorf("leave %d has no name", l)
		}
	}
	for f := bpfFault(0); f < bpfFaultFAULT_MAX; f++ {
		if faultNames[f] == "" {
			t.Errorf("fault %d has no name", f)
		}
	}
}

func TestAddrPort(t *testing.T) {
	for _, want := range []string{"127.0.0.1:80", "[::1]:443", "[fd77::1:2]:6379"} {
		ap := netip.MustParseAddrPort(want)
		b := ap.Addr().As16()
		words := *(*[4]uint32)(unsafe.Pointer(&b))
		if got := addrPort(words, ap.Port()).String(); got != want {
			t.Errorf("addrPort(%s) = %s", want, got)
		}
	}
}

// The layouts that Go and the kernel half share are the ones in the object.
func TestLayouts(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]uintptr{
		bpfMapShuntConns:  unsafe.Sizeof(bpfConn{}),
		bpfMapShuntStats:  unsafe.Sizeof(bpfStats{}),
		bpfMapShuntGuards: 1,
	} {
		if got := uintptr(spec.Maps[name].ValueSize); got != size {
			t.Errorf("%s has values of %d bytes, Go's type %d", name, got, size)
		}
	}
	for name, m := range spec.Maps {
		if m.MaxEntries == 0 && m.Type != ebpf.SkStorage {
			t.Errorf("map %s has no bound", name)
		}
	}
}

func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "instance")
	if err := Remove(dir); err != nil {
		t.Fatalf("remove what does not exist: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link-join", "shunt_conns"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Fatalf("%s is still there", dir)
	}
}
