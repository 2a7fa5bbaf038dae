// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Op is what a Change does.
type Op string

// What a Change does to its path.
const (
	Added   Op = "add"
	Removed Op = "remove"
	Changed Op = "change"
)

// Change is one difference between two configurations.
type Change struct {
	Op   Op     `json:"op" yaml:"op"`
	Path string `json:"path" yaml:"path"`                   // as accel.select[1].ports; an index is that of the new file
	Old  string `json:"old,omitempty" yaml:"old,omitempty"` // of Changed and Removed
	New  string `json:"new,omitempty" yaml:"new,omitempty"` // of Changed and Added
}

// String is one line, as "accel.select[1].ports: 80 -> 80,443".
func (c Change) String() string {
	switch c.Op {
	case Added:
		return fmt.Sprintf("%s: + %s", c.Path, c.New)
	case Removed:
		return fmt.Sprintf("%s: - %s", c.Path, c.Old)
	}
	return fmt.Sprintf("%s: %s -> %s", c.Path, c.Old, c.New)
}

// WithDefaults returns c with every default written out. Its slices are c's.
func (c Config) WithDefaults() *Config {
	if c.APIVersion == "" {
		c.APIVersion = APIVersion
	}
	if c.Accel.MaxQueue == 0 {
		c.Accel.MaxQueue = DefaultQueue
	}
	return &c
}

// Diff returns what is to change to make a node that runs before run after,
// in the order of the file; nil is a node that runs nothing. What makes no
// difference to the node is none: the order of selectors and of the values in
// them, and a default written out.
func Diff(before, after *Config) []Change {
	if before == nil {
		before = &Config{}
	}
	if after == nil {
		after = &Config{}
	}
	a, b := before.WithDefaults(), after.WithDefaults()
	changes := changed(nil, "apiVersion", a.APIVersion, b.APIVersion)
	changes = selectorChanges(changes, "accel.select", a.Accel.Select, b.Accel.Select)
	changes = selectorChanges(changes, "accel.exclude", a.Accel.Exclude, b.Accel.Exclude)
	changes = changed(changes, "accel.accept", joined(slices.Sorted(slices.Values(a.Accel.Accept))), joined(slices.Sorted(slices.Values(b.Accel.Accept))))
	changes = changed(changes, "accel.maxQueue", a.Accel.MaxQueue.String(), b.Accel.MaxQueue.String())
	return changed(changes, "observe.metrics", a.Observe.metricsText(), b.Observe.metricsText())
}

func changed(changes []Change, path, before, after string) []Change {
	if before == after {
		return changes
	}
	return append(changes, Change{Changed, path, before, after})
}

func (o Observe) metricsText() string {
	if !o.Metrics.IsValid() {
		return "off"
	}
	return o.Metrics.String()
}

func joined[T any](values []T) string {
	if len(values) == 0 {
		return "none"
	}
	text := make([]string, len(values))
	for i, v := range values {
		text[i] = fmt.Sprint(v)
	}
	return strings.Join(text, ",")
}

// selectorChanges compares selectors by what they match. Of those that differ,
// the two that have most in common are one that was edited; what has nothing
// in common with any was added or removed.
func selectorChanges(changes []Change, path string, before, after []Selector) []Change {
	partner := make([]int, len(after)) // index of the old one, or -1
	used := make([]bool, len(before))
	for j := range after {
		partner[j] = slices.IndexFunc(before, func(s Selector) bool { return s.key() == after[j].key() })
		if partner[j] >= 0 {
			used[partner[j]] = true
		}
	}
	for {
		best, bi, bj := 0, 0, 0
		for i := range before {
			for j := range after {
				if used[i] || partner[j] >= 0 {
					continue
				}
				if n := likeness(before[i], after[j]); n > best {
					best, bi, bj = n, i, j
				}
			}
		}
		if best == 0 {
			break
		}
		used[bi], partner[bj] = true, bi
	}
	for i, s := range before {
		if !used[i] {
			changes = append(changes, Change{Op: Removed, Path: path, Old: s.String()})
		}
	}
	for j, s := range after {
		if partner[j] < 0 {
			changes = append(changes, Change{Op: Added, Path: path, New: s.String()})
			continue
		}
		a, b := before[partner[j]].texts(), s.texts()
		for k := range a {
			if !a[k].same(b[k]) {
				changes = changed(changes, fmt.Sprintf("%s[%d].%s", path, j, a[k].name), a[k].String(), b[k].String())
			}
		}
	}
	return changes
}

// likeness is 0 for two selectors that have nothing in common. A field that is
// the same counts more than one value of a list.
func likeness(a, b Selector) int {
	n := 0
	ta, tb := a.texts(), b.texts()
	for k := range ta {
		if len(ta[k].values) > 0 && ta[k].same(tb[k]) {
			n += 2
		} else if slices.ContainsFunc(ta[k].values, func(v string) bool { return slices.Contains(tb[k].values, v) }) {
			n++
		}
	}
	return n
}

// fieldText is a field of a selector as text; without values if it is not set.
type fieldText struct {
	name   string
	values []string
}

func (f fieldText) same(g fieldText) bool {
	return slices.Equal(slices.Sorted(slices.Values(f.values)), slices.Sorted(slices.Values(g.values)))
}

func (f fieldText) String() string { return joined(f.values) }

// texts are the fields in the order of the file's documentation.
func (s Selector) texts() []fieldText {
	one := func(v string) []string {
		if v == "" {
			return nil
		}
		if strings.ContainsAny(v, " ,{}\"") {
			v = strconv.Quote(v)
		}
		return []string{v}
	}
	return []fieldText{
		{"cgroup", one(s.Cgroup)}, {"unit", one(s.Unit)},
		{"ports", texts(s.Ports)}, {"addresses", texts(s.Addresses)},
		{"netns", one(s.Netns)}, {"uids", texts(s.UIDs)},
	}
}

func texts[T any](values []T) []string {
	var t []string
	for _, v := range values {
		t = append(t, fmt.Sprint(v))
	}
	return t
}

// String is the selector on one line, as "{unit: redis.service, ports: 80,443}".
func (s Selector) String() string {
	var fields []string
	for _, f := range s.texts() {
		if len(f.values) > 0 {
			fields = append(fields, f.name+": "+f.String())
		}
	}
	return "{" + strings.Join(fields, ", ") + "}"
}

// Summary is the configuration in a few words.
func (c *Config) Summary() string {
	count := func(n int, one, many string) string {
		switch n {
		case 0:
			return "no " + many
		case 1:
			return "1 " + one
		}
		return fmt.Sprintf("%d %s", n, many)
	}
	s := count(len(c.Accel.Select), "selector", "selectors") + ", " + count(len(c.Accel.Exclude), "exclusion", "exclusions")
	if len(c.Accel.Select) == 0 {
		s += " (nothing is accelerated)"
	}
	if len(c.Accel.Accept) > 0 {
		s += ", " + strings.Join(c.Accel.Accept, " and ") + " given up"
	}
	return s + ", metrics " + c.Observe.metricsText()
}
