// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Bounds of values; the schema names the same ones.
const (
	MinQueue     Bytes = 1 << 10
	MaxMaxQueue  Bytes = 1 << 30
	DefaultQueue Bytes = 4 << 20 // where maxQueue is not set

	maxUID  = 1<<32 - 2 // 2³²-1 is "no user" to the kernel
	maxUnit = 255       // systemd's UNIT_NAME_MAX is 256 with the final 0
	maxPath = 4095      // the kernel's PATH_MAX is 4096 with the final 0
	maxName = 255       // NAME_MAX
)

// String is 80, or 8000-8010.
func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// MarshalText writes the range as String does.
func (p PortRange) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (p *PortRange) UnmarshalText(text []byte) error {
	r, err := parsePorts(string(text))
	if err == nil {
		*p = r
	}
	return err
}

// MarshalYAML writes one port as a number.
func (p PortRange) MarshalYAML() (any, error) {
	if p.First == p.Last {
		return p.First, nil
	}
	return p.String(), nil
}

// MarshalJSON writes one port as a number.
func (p PortRange) MarshalJSON() ([]byte, error) {
	if p.First == p.Last {
		return []byte(p.String()), nil
	}
	return json.Marshal(p.String())
}

// UnmarshalJSON reads a number or a string.
func (p *PortRange) UnmarshalJSON(data []byte) error {
	return unmarshalNumberOrString(data, p)
}

func parsePorts(s string) (PortRange, error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	if !isDecimal(from) || !isDecimal(to) {
		return PortRange{}, fmt.Errorf("%s is not a port; write a number as 80, or a range as 8000-8010", show(s))
	}
	first, ok := port(from)
	last, lastOK := port(to)
	if !ok || !lastOK {
		return PortRange{}, fmt.Errorf("%s is out of range; ports are 1 to 65535", cut(s))
	}
	if first > last {
		return PortRange{}, fmt.Errorf("%s is backwards; write %d-%d", s, last, first)
	}
	return PortRange{first, last}, nil
}

func port(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0
}

// isDecimal says whether s is a number that nobody can read as octal or hex.
func isDecimal(s string) bool {
	if s == "" || len(s) > 1 && s[0] == '0' {
		return false
	}
	return strings.Trim(s, "0123456789") == ""
}

// cut shortens without quotes; for what is known to be digits.
func cut(s string) string {
	if len(s) > maxShown {
		return s[:maxShown] + "…"
	}
	return s
}

var units = []struct {
	name string
	size Bytes
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// String is the size in the largest unit that divides it, as 4MiB.
func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatUint(uint64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(b), 10)
}

// MarshalText writes the size as String does.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (b *Bytes) UnmarshalText(text []byte) error {
	n, err := parseBytes(string(text))
	if err == nil {
		*b = n
	}
	return err
}

// MarshalYAML writes a size without a unit as a number.
func (b Bytes) MarshalYAML() (any, error) {
	if b == 0 || b%units[len(units)-1].size != 0 {
		return uint64(b), nil
	}
	return b.String(), nil
}

// MarshalJSON writes a size without a unit as a number.
func (b Bytes) MarshalJSON() ([]byte, error) {
	v, _ := b.MarshalYAML()
	return json.Marshal(v)
}

// UnmarshalJSON reads a number or a string.
func (b *Bytes) UnmarshalJSON(data []byte) error { return unmarshalNumberOrString(data, b) }

func parseBytes(s string) (Bytes, error) {
	digits, size := s, Bytes(1)
	for _, u := range units {
		if d, ok := strings.CutSuffix(s, u.name); ok {
			digits, size = d, u.size
			break
		}
	}
	if !isDecimal(digits) {
		return 0, fmt.Errorf("%s is not a size%s", show(s), sizeHint(s))
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > uint64(1<<63)/uint64(size) {
		return 0, fmt.Errorf("%s is too large; the largest size is %v", show(s), MaxMaxQueue)
	}
	return Bytes(n) * size, nil
}

// sizeHint guesses what was meant by 4M, 4mb or 4 MiB.
func sizeHint(s string) string {
	digits := strings.TrimRightFunc(s, func(r rune) bool { return r > '9' || r == ' ' })
	unit := strings.ToLower(strings.TrimSpace(s[len(digits):]))
	for _, u := range units {
		l := strings.ToLower(u.name)
		if isDecimal(digits) && (unit == l || unit == l[:1] || unit == l[:1]+"b") {
			return "; write " + digits + u.name
		}
	}
	return "; write a number of bytes, or one with KiB, MiB or GiB, as 4MiB"
}

func unmarshalNumberOrString(data []byte, to interface{ UnmarshalText([]byte) error }) error {
	if len(data) > 0 && data[0] == '"' {
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		return to.UnmarshalText([]byte(s))
	}
	return to.UnmarshalText(data)
}

// MarshalYAML is there because yaml takes every netip.AddrPort for empty: it
// has no exported field.
func (o Observe) MarshalYAML() (any, error) {
	m := map[string]string{}
	if o.Metrics.IsValid() {
		m["metrics"] = o.Metrics.String()
	}
	return m, nil
}

// parsePrefix reads 10.0.0.0/8 or 10.0.0.1. IPv4 in IPv6 comes back as IPv4,
// as the kernel half sees it.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%s is not an address; write an IP address or a prefix, as 10.0.0.1, 10.0.0.0/8 or fd00::/8", show(s))
		}
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%s has a zone; write %v", show(s), a.WithZone(""))
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s is not a prefix; write one as 10.0.0.0/8 or fd00::/8", show(s))
	}
	if m := p.Masked(); m != p {
		a := unmapPrefix(netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
		return netip.Prefix{}, fmt.Errorf("%s has bits set after the prefix; write %v for the network, or %v for the one address", show(s), unmapPrefix(m), a.Addr())
	}
	return unmapPrefix(p), nil
}

func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// checkText refuses what no path or name here can contain.
func checkText(s string, longest int) error {
	if s == "" {
		return fmt.Errorf("empty; give it a value or remove the key")
	}
	if len(s) > longest {
		return fmt.Errorf("longer than %d bytes; no such name can exist", longest)
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%s contains a control character; remove it", show(s))
	}
	return nil
}

// checkPath wants the one way of writing an absolute path.
func checkPath(s, example string) error {
	if err := checkText(s, maxPath); err != nil {
		return err
	}
	if s[0] != '/' {
		return fmt.Errorf("%s does not start with /; write the whole path, as %s", show(s), example)
	}
	if s == "/" {
		return nil
	}
	for _, level := range strings.Split(s[1:], "/") {
		switch {
		case level == "..":
			return fmt.Errorf("%s contains ..; write the path without it", show(s))
		case level == "" || level == ".":
			return fmt.Errorf("%s has an empty level; write %s", show(s), cut(path.Clean(s)))
		case len(level) > maxName:
			return fmt.Errorf("%s has a level longer than %d bytes; no such name can exist", show(s), maxName)
		}
	}
	return nil
}

// checkCgroup accepts a path with the globs of path.Match in its levels.
func checkCgroup(s string) error {
	if err := checkPath(s, "/system.slice/redis-server.service"); err != nil {
		return err
	}
	if strings.HasPrefix(s, "/sys/fs/cgroup/") {
		return fmt.Errorf("%s is a path of the file system; write it from the root of cgroup2, as /system.slice/redis-server.service", show(s))
	}
	for _, level := range strings.Split(s, "/") {
		if _, err := path.Match(level, ""); err != nil {
			if strings.HasSuffix(level, `\`) {
				return fmt.Errorf(`%s is not a valid glob; end it in \\ for a backslash`, show(level))
			}
			return fmt.Errorf("%s is not a valid glob; close the [, or write \\[ for the character", show(level))
		}
		if strings.Contains(level, "**") {
			return fmt.Errorf("%s: a glob stays within one level; write one *, the children of what matches match too", show(level))
		}
		if strings.Contains(level, "[!") {
			return fmt.Errorf("%s: [! is not negation here; write [^", show(level))
		}
		for i := 0; i < len(level)-1; i++ {
			if level[i] != '\\' {
				continue
			}
			i++
			if !strings.ContainsRune(`\*?[]-^`, rune(level[i])) {
				return fmt.Errorf(`%s: \%c would match %c alone; write \\ for a backslash, as systemd puts it into names`, show(level), level[i], level[i])
			}
		}
	}
	return nil
}

// Units whose processes have a cgroup of the unit's name, and those that have
// no processes.
var (
	unitSuffixes  = []string{".service", ".scope", ".slice", ".socket", ".mount", ".swap"}
	emptySuffixes = []string{".target", ".timer", ".path", ".device", ".automount"}
)

func checkUnit(s string) error {
	if err := checkText(s, maxUnit); err != nil {
		return err
	}
	if strings.Contains(s, "/") {
		return fmt.Errorf("%s is a path; write it as cgroup, or the last level alone as unit", show(s))
	}
	if strings.ContainsAny(s, "*?[") {
		return fmt.Errorf("%s: a unit has no globs; write it as cgroup, as /system.slice/%s", show(s), cut(s))
	}
	if i := strings.IndexFunc(s, func(r rune) bool {
		return !strings.ContainsRune(`:-_.\@`, r) && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
	}); i >= 0 {
		return fmt.Errorf("%s is not a unit: %q cannot be in its name; systemd-escape(1) prints it as systemd does", show(s), []rune(s[i:])[0])
	}
	suffix := path.Ext(s)
	if slices.Contains(emptySuffixes, suffix) {
		return fmt.Errorf("%s has no processes; name the service that it starts", show(s))
	}
	if !slices.Contains(unitSuffixes, suffix) {
		return fmt.Errorf("%s has no suffix of a unit; write %s.service, or with %s", show(s), cut(s), list(unitSuffixes[1:]))
	}
	name := strings.TrimSuffix(s, suffix)
	if name == "" {
		return fmt.Errorf("%s has no name; write one as redis-server.service", show(s))
	}
	if name[0] == '@' {
		return fmt.Errorf("%s has no name before the @; write one as getty@tty1.service", show(s))
	}
	if strings.HasSuffix(name, "@") {
		return fmt.Errorf("%s is a template, which has no processes; name an instance, as %s1%s", show(s), cut(name), suffix)
	}
	return nil
}

func checkNetns(s string) error {
	if strings.HasPrefix(s, "/") {
		if err := checkPath(s, "/run/netns/NAME"); err != nil {
			return err
		}
		if s == "/" {
			return fmt.Errorf(`"/" is not a namespace; write host, a name in /run/netns, or a path`)
		}
		return nil
	}
	if err := checkText(s, maxName); err != nil {
		return err
	}
	if s == "." || s == ".." || strings.Contains(s, "/") {
		return fmt.Errorf("%s is not a namespace; write host, a name in /run/netns, or a path that starts with /", show(s))
	}
	return nil
}

// parseMetrics reads ADDRESS:PORT.
func parseMetrics(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err == nil {
		if ap.Port() == 0 {
			return netip.AddrPort{}, fmt.Errorf("%s: port 0 is a port that nobody can know; write one of 1 to 65535, as 127.0.0.1:9777", show(s))
		}
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
	}
	host, port, ok := cutLast(s, ":")
	if p, err := parsePorts(port); !ok || err != nil || p.First != p.Last {
		return netip.AddrPort{}, fmt.Errorf("%s is not an address with a port; write one as 127.0.0.1:9777 or [::1]:9777", show(s))
	}
	switch {
	case host == "" || host == "*":
		return netip.AddrPort{}, fmt.Errorf("%s names no address; write 127.0.0.1:%s for this machine alone, or [::]:%[2]s for every address", show(s), port)
	case strings.Contains(host, ":"):
		return netip.AddrPort{}, fmt.Errorf("%s: write an IPv6 address in brackets, as [::1]:9777", show(s))
	}
	return netip.AddrPort{}, fmt.Errorf("%s: %s is a name, and names change; write its IP address, as 127.0.0.1:%s", show(s), show(host), port)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}
