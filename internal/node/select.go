// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/config"
	"github.com/shuntnet/shunt/internal/kernel"
)

// resolver finds what the names in selectors stand for right now.
type resolver struct {
	cgroups string // mount point of cgroup2
	netns   map[string][]uint64
	missing []string // what names stand for nothing
}

// resolve turns a configuration into what the kernel half compares with. What
// does not exist (yet) matches nothing; a later resolve may find it.
func resolve(a config.Accel, cgroups string) (accel.Selection, []string) {
	r := resolver{cgroups: cgroups, netns: map[string][]uint64{}}
	sel := accel.Selection{}
	for _, s := range a.Select {
		sel.Select = append(sel.Select, r.selector(s))
	}
	for _, s := range a.Exclude {
		sel.Exclude = append(sel.Exclude, r.selector(s))
	}
	return sel, r.missing
}

func (r *resolver) selector(s config.Selector) accel.Selector {
	out := accel.Selector{Addresses: s.Addresses, UIDs: s.UIDs}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, accel.PortRange(p))
	}
	out.NamesCgroup = s.Cgroup != "" || s.Unit != ""
	switch {
	case s.Cgroup != "" && s.Unit != "":
		// A unit inside of that part of the tree.
		out.Cgroups = below(r.cgroup(s.Cgroup), r.unit(s.Unit))
	case s.Cgroup != "":
		for _, c := range r.cgroup(s.Cgroup) {
			out.Cgroups = append(out.Cgroups, c.id)
		}
	case s.Unit != "":
		for _, c := range r.unit(s.Unit) {
			out.Cgroups = append(out.Cgroups, c.id)
		}
	}
	if out.NamesCgroup && len(out.Cgroups) == 0 {
		r.missing = append(r.missing, strings.TrimSpace(s.Cgroup+" "+s.Unit))
	}
	if s.Netns != "" {
		out.NamesNetns = true
		out.Netns = r.namespace(s.Netns)
	}
	return out
}

type cgroupDir struct {
	path string
	id   uint64
}

// below are those of inner that lie in one of outer, or are one.
func below(outer, inner []cgroupDir) (ids []uint64) {
	for _, in := range inner {
		for _, out := range outer {
			if in.path == out.path || strings.HasPrefix(in.path, out.path+"/") {
				ids = append(ids, in.id)
				break
			}
		}
	}
	return ids
}

func cgroupAt(path string) (cgroupDir, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return cgroupDir{}, false
	}
	return cgroupDir{path, st.Ino}, true
}

// cgroup finds the cgroups that a path with globs names.
func (r *resolver) cgroup(pattern string) (found []cgroupDir) {
	pattern = filepath.Clean("/" + pattern)
	// Only what comes after the mount point is a pattern.
	matches, err := fs.Glob(os.DirFS(r.cgroups), strings.TrimPrefix(pattern, "/"))
	if pattern == "/" {
		matches, err = []string{"."}, nil
	}
	if err != nil { // the file's check has refused it before
		return nil
	}
	for _, m := range matches {
		if c, ok := cgroupAt(filepath.Join(r.cgroups, m)); ok {
			found = append(found, c)
		}
	}
	return found
}

// unit finds the cgroups of a systemd unit, in any slice.
func (r *resolver) unit(name string) (found []cgroupDir) {
	filepath.WalkDir(r.cgroups, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // the function returns none but SkipDir
		if err != nil || !d.IsDir() {
			return nil
		}
		if d.Name() == name {
			if c, ok := cgroupAt(path); ok {
				found = append(found, c)
			}
			return fs.SkipDir
		}
		return nil
	})
	return found
}

// namespace finds the cookie of "host", of a name in /run/netns, or of a path.
func (r *resolver) namespace(name string) []uint64 {
	if cookies, ok := r.netns[name]; ok {
		return cookies
	}
	path := name
	switch {
	case name == "host":
		path = "/proc/1/ns/net"
	case !strings.HasPrefix(name, "/"):
		path = filepath.Join("/run/netns", name)
	}
	var cookies []uint64
	cookie, err := netnsCookie(path)
	if err == nil {
		cookies = []uint64{cookie}
	} else {
		r.missing = append(r.missing, fmt.Sprintf("network namespace %s (%v)", name, err))
	}
	r.netns[name] = cookies
	return cookies
}

func netnsCookie(path string) (cookie uint64, err error) {
	// Its own needs no capability to enter.
	own, errOwn := os.Stat("/proc/self/ns/net")
	that, errThat := os.Stat(path)
	if err := errors.Join(errOwn, errThat); err != nil {
		return 0, err
	}
	if os.SameFile(own, that) {
		return kernel.NetnsCookie()
	}
	err = kernel.InNetns(path, func() error {
		cookie, err = kernel.NetnsCookie()
		return err
	})
	return cookie, err
}

// accelOptions are the parts of the configuration that programs are built with.
func accelOptions(a config.Accel) (accel.Options, error) {
	if a.MaxQueue > math.MaxUint32 {
		return accel.Options{}, fmt.Errorf("maxQueue: %d bytes are more than fit", a.MaxQueue)
	}
	o, err := acceptance(SessionOptions{Accept: a.Accept, MaxQueue: uint32(a.MaxQueue)})
	o.Select = true
	return o, err
}
