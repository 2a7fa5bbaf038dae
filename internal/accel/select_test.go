// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"net/netip"
	"testing"
)

// The kernel finds the longest prefix only, so it must carry the bits of those
// that cover it, and of no others.
func TestCompilePrefixes(t *testing.T) {
	one := func(s string) Selector { return Selector{Addresses: []netip.Prefix{netip.MustParsePrefix(s)}} }
	g, err := compile(Selection{
		Select:  []Selector{one("10.0.0.0/8"), one("10.77.0.0/16"), one("10.78.0.0/16")},
		Exclude: []Selector{one("10.77.1.1/32"), one("fd77::/16"), one("10.77.0.0/16")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string]uint64{
		"10.0.0.0/8":   0b000001,
		"10.77.0.0/16": 0b100011,
		"10.78.0.0/16": 0b000101,
		"10.77.1.1/32": 0b101011,
		"fd77::/16":    0b010000,
	} {
		if got := g.prefixes[mapped(netip.MustParsePrefix(prefix))]; got != want {
			t.Errorf("%s has the selectors %b, want %b", prefix, got, want)
		}
	}
	if len(g.prefixes) != 5 || g.head.Select != 0b111 || g.head.Exclude != 0b111000 || g.head.Named[bpfDimensionDIM_ADDRESS] != 0b111111 {
		t.Errorf("%d prefixes, head %+v", len(g.prefixes), g.head)
	}
	// The host bits of a prefix are not part of it.
	if a, b := mapped(netip.MustParsePrefix("10.1.2.3/8")), mapped(netip.MustParsePrefix("10.0.0.0/8")); a != b {
		t.Errorf("%v and %v are the same prefix", a, b)
	}
}

func TestCompileBounds(t *testing.T) {
	if _, err := compile(Selection{Select: make([]Selector, MaxSelectors)}); err != nil {
		t.Errorf("%d selectors: %v", MaxSelectors, err)
	}
	if _, err := compile(Selection{Select: make([]Selector, MaxSelectors), Exclude: make([]Selector, 1)}); err == nil {
		t.Error("one selector too many was taken")
	}
	g, err := compile(Selection{Select: []Selector{{Ports: []PortRange{{65534, 65535}}}, {NamesCgroup: true}}})
	if err != nil || len(g.values) != 2 {
		t.Errorf("the last two ports are %d entries, %v", len(g.values), err)
	}
	if g.head.Named[bpfDimensionDIM_CGROUP] != 0b10 {
		t.Error("a cgroup that does not exist matches everything")
	}
}

// Equal builds with equal options are the same; the options are part of it.
func TestAbout(t *testing.T) {
	plain, err := aboutThis(Options{})
	if err != nil {
		t.Fatal(err)
	}
	same, err := aboutThis(Options{MaxQueue: DefaultMaxQueue, Fault: func(string) error { return nil }})
	if err != nil || same != plain {
		t.Errorf("the default written out makes another build (%v)", err)
	}
	other, err := aboutThis(Options{MaxQueue: 1})
	if err != nil || other.Build == plain.Build || other.Layout != plain.Layout {
		t.Errorf("other options: %v, same build %v, same layout %v", err, other.Build == plain.Build, other.Layout == plain.Layout)
	}
}
