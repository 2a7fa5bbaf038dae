// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// TapFilter selects connections. Every condition must hold; the zero value
// selects all.
type TapFilter struct {
	Hosts  []netip.Addr // each is the address of one end; at most 2
	Ports  []uint16     // each is the port of one end; at most 2
	PID    int          // a process that has one end open, or sends; 0: any
	Cgroup string       // one end is in it or below, as in /proc/PID/cgroup; "": any
}

// A connection has two ends.
const maxEnds = 2

// ParseTapFilter reads "port N", "host ADDRESS", "pid N" and "cgroup PATH",
// joined by "and".
func ParseTapFilter(text string) (TapFilter, error) {
	var f TapFilter
	words := strings.Fields(text)
	for i := 0; i < len(words); {
		if i > 0 {
			if words[i] != "and" {
				return f, fmt.Errorf("filter: %q where \"and\" should be: only \"and\" joins conditions", words[i])
			}
			i++
		}
		if i+1 >= len(words) {
			what := "the end"
			if i < len(words) {
				what = "nothing after " + strconv.Quote(words[i])
			}
			return f, fmt.Errorf("filter: %s, where a condition should be: port N, host ADDRESS, pid N or cgroup PATH", what)
		}
		if err := f.add(words[i], words[i+1]); err != nil {
			return f, err
		}
		i += 2
	}
	return f, nil
}

func (f *TapFilter) add(kind, value string) error {
	switch kind {
	case "port":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("filter: port %q: use a number from 1 to 65535", value)
		}
		if len(f.Ports) == maxEnds {
			return fmt.Errorf("filter: port %d: a connection has only two ports", n)
		}
		f.Ports = append(f.Ports, uint16(n))
	case "host":
		a, err := netip.ParseAddr(value)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("filter: host %q: use an IPv4 or IPv6 address, without a zone", value)
		}
		if len(f.Hosts) == maxEnds {
			return fmt.Errorf("filter: host %s: a connection has only two addresses", value)
		}
		f.Hosts = append(f.Hosts, a.Unmap())
	case "pid":
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil || n <= 0 {
			return fmt.Errorf("filter: pid %q: use the number of a process", value)
		}
		if f.PID != 0 {
			return fmt.Errorf("filter: pid %d: only one pid can be given", n)
		}
		f.PID = int(n)
	case "cgroup":
		if !strings.HasPrefix(value, "/") {
			return fmt.Errorf("filter: cgroup %q: use a path from the root of the hierarchy, as in /proc/PID/cgroup: /system.slice/redis.service", value)
		}
		if f.Cgroup != "" {
			return fmt.Errorf("filter: cgroup %s: only one cgroup can be given", value)
		}
		f.Cgroup = path.Clean(value)
	default:
		return fmt.Errorf("filter: unknown condition %q: use port N, host ADDRESS, pid N or cgroup PATH", kind)
	}
	return nil
}

// InCgroup reports whether a cgroup path is the filter's or below it.
func (f TapFilter) InCgroup(p string) bool {
	return f.Cgroup == "" || f.Cgroup == "/" || p == f.Cgroup || strings.HasPrefix(p, f.Cgroup+"/")
}
