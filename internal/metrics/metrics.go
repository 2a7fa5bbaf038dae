// SPDX-License-Identifier: Apache-2.0

// Package metrics shows what the planes count to Prometheus.
//
// Names are stable: shunt_<plane>_…, base units, counters end in _total. No label
// holds an address: a busy machine would make a series of each.
package metrics

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/node"
)

// The label of every metric of an instance. Not "instance": that is the target's
// in Prometheus.
const instanceLabel = "shunt_instance"

// Metric is a metric that shunt exports, as its documentation lists it.
type Metric struct {
	Name    string   `json:"name" yaml:"name"`
	Type    string   `json:"type" yaml:"type"` // counter or gauge
	Labels  []string `json:"labels" yaml:"labels"`
	Meaning string   `json:"meaning" yaml:"meaning"`
}

// Label is a label and the values that it can have, where they are a fixed list.
type Label struct {
	Metric string  `json:"metric" yaml:"metric"`
	Name   string  `json:"name" yaml:"name"`
	Values []Value `json:"values" yaml:"values"`
}

// Value is one value of a label.
type Value struct {
	Name    string `json:"name" yaml:"name"`
	Meaning string `json:"meaning" yaml:"meaning"`
}

// family is a metric of each instance: one series without a label of its own, or
// one for each of values.
type family struct {
	Metric
	values []string // of the label that is not the instance's
	read   func(i node.Instance, value string) (n uint64, known bool)
}

const (
	counter = "counter"
	gauge   = "gauge"
)

func plain(name, kind, meaning string, read func(node.Instance) uint64) family {
	return family{Metric{name, kind, []string{instanceLabel}, meaning}, []string{""},
		func(i node.Instance, _ string) (uint64, bool) { return read(i), true }}
}

func by(label, name, meaning string, values []string, read func(s accel.Stats, value string) uint64) family {
	return family{Metric{name, counter, []string{instanceLabel, label}, meaning}, values,
		func(i node.Instance, v string) (uint64, bool) { return read(i.Stats, v), true }}
}

// families are in the order of the documentation. Every reason is there from the
// start, as 0: a series that appears with its first event has no rate for it.
func families() []family {
	names := accel.AllNames()
	return []family{
		plain("shunt_accel_connections_total", counter, "connections with at least one end in the instance; each is joined or not joined",
			func(i node.Instance) uint64 { return i.Stats.Connections }),
		plain("shunt_accel_joined_total", counter, "connections whose two ends were joined",
			func(i node.Instance) uint64 { return i.Stats.Joined }),
		by("reason", "shunt_accel_not_joined_total", "connections that were left to plain TCP from the start", names.NotJoined,
			func(s accel.Stats, v string) uint64 { return s.NotJoined[v] }),
		by("reason", "shunt_accel_left_total", "joined connections that left for plain TCP before their end", names.Left,
			func(s accel.Stats, v string) uint64 { return s.Left[v] }),
		plain("shunt_accel_redirected_bytes_total", counter, "payload that went from socket to socket",
			func(i node.Instance) uint64 { return i.Stats.Redirected.Bytes }),
		plain("shunt_accel_redirected_messages_total", counter, "messages (send calls or parts of them) that went from socket to socket",
			func(i node.Instance) uint64 { return i.Stats.Redirected.Messages }),
		by("reason", "shunt_accel_stack_bytes_total", "payload of joined sockets that took the stack", names.Stack,
			func(s accel.Stats, v string) uint64 { return s.Stack[v].Bytes }),
		by("reason", "shunt_accel_stack_messages_total", "messages of joined sockets that took the stack", names.Stack,
			func(s accel.Stats, v string) uint64 { return s.Stack[v].Messages }),
		plain("shunt_accel_spilled_bytes_total", counter, "payload that took the stack because the receiver's queue was full; also in shunt_accel_stack_bytes_total",
			func(i node.Instance) uint64 { return i.Stats.Spilled().Bytes }),
		plain("shunt_accel_spilled_messages_total", counter, "messages that took the stack because the receiver's queue was full; also in shunt_accel_stack_messages_total",
			func(i node.Instance) uint64 { return i.Stats.Spilled().Messages }),
		plain("shunt_accel_resets_total", counter, "closes with unread bytes that were told to the peer as RST",
			func(i node.Instance) uint64 { return i.Stats.Resets }),
		by("place", "shunt_accel_faults_total", "kernel calls of shunt's programs that failed; anything but 0 deserves a look", names.Faults,
			func(s accel.Stats, v string) uint64 { return s.Faults[v] }),
		plain("shunt_accel_sockets", gauge, "sockets in the map now, two a connection",
			func(i node.Instance) uint64 { return uint64(i.Mapped) }),
		plain("shunt_accel_sockets_limit", gauge, "sockets that fit into the map",
			func(node.Instance) uint64 { return uint64(capacity()) }),
		{Metric{"shunt_accel_queue_bound_bytes", gauge, []string{instanceLabel}, "bytes that may wait at one receiver before its sender spills (--max-queue)"}, []string{""},
			func(i node.Instance, _ string) (uint64, bool) { return uint64(i.MaxQueue), i.MaxQueue > 0 }},
		plain("shunt_accel_owned", gauge, "1 if the shunt process that made the instance lives, 0 if it was left behind",
			func(i node.Instance) uint64 {
				if i.Owned {
					return 1
				}
				return 0
			}),
	}
}

// Metrics without a family.
var (
	instanceInfo = Metric{"shunt_accel_instance_info", gauge, []string{instanceLabel, "cgroup"}, "always 1; the cgroup that the instance is attached to"}
	buildInfo    = Metric{"shunt_build_info", gauge, []string{"version", "goversion", "kernel"}, "always 1; the versions of shunt, Go and the running kernel"}
	scrapeErrors = Metric{"shunt_scrape_errors_total", counter, []string{}, "scrapes in which a loaded instance could not be read; its series are missing then"}
)

// capacity does not change while the program runs.
var capacity = sync.OnceValue(func() uint32 {
	n, err := accel.Capacity()
	if err != nil { // the object is part of the program, and was loaded before
		slog.Error("metrics: read the table's size", "err", err)
	}
	return n
})

// Describe lists every metric.
func Describe() []Metric {
	var list []Metric
	for _, f := range families() {
		list = append(list, f.Metric)
	}
	return append(list, instanceInfo, scrapeErrors, buildInfo)
}

// Labels lists the labels with a fixed list of values, and what those mean.
func Labels() []Label {
	var list []Label
	for _, f := range families() {
		if len(f.Labels) < 2 {
			continue
		}
		l := Label{Metric: f.Name, Name: f.Labels[1]}
		explain := accel.Explain
		if l.Name == "place" {
			explain = accel.ExplainFault
		}
		for _, v := range f.values {
			l.Values = append(l.Values, Value{v, explain(v)})
		}
		list = append(list, l)
	}
	return list
}

// Collector reads the source at each scrape.
type Collector struct {
	source   func() ([]node.Instance, error)
	families []family
	build    []string
	log      bool // nobody is told of an error otherwise

	mu     sync.Mutex
	errors uint64
	unread error // of the last scrape
	marks  map[string]*mark
}

// mark holds the highest values that an instance's counters ever showed. What a
// connection redirected may be missing in the moment of its close, and a message
// that could not be redirected after all is taken back: Prometheus takes any
// step back for a restart, and would count everything again.
type mark struct {
	counters uint32 // the ID of the kernel's counters: with others all begins anew
	high     map[string]uint64
}

// New makes a collector over the instances that source returns: with an error,
// those that could be read. Of two with one name the first counts.
func New(source func() ([]node.Instance, error), version string) *Collector {
	return &Collector{
		source:   source,
		families: families(),
		build:    []string{version, runtime.Version(), kernelRelease()},
		marks:    map[string]*mark{},
	}
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// WriteText reads the source and writes everything in Prometheus's text format.
// Where an instance could not be read, shunt_scrape_errors_total says so in the
// text, and an error after it.
func (c *Collector) WriteText(w io.Writer) error {
	c.mu.Lock() // two scrapes at once must not overtake each other's marks
	defer c.mu.Unlock()
	list := c.read()
	var t text
	for _, f := range c.families {
		t.head(f.Metric)
		for _, i := range list {
			for _, v := range f.values {
				n, known := f.read(i, v)
				if !known {
					continue
				}
				if f.Type == counter {
					n = c.marks[i.Name].keep(f.Name+" "+v, n)
				}
				t.sample(f.Metric, n, i.Name, v)
			}
		}
	}
	t.head(instanceInfo)
	for _, i := range list {
		t.sample(instanceInfo, 1, i.Name, i.Cgroup)
	}
	t.head(scrapeErrors)
	t.sample(scrapeErrors, c.errors)
	t.head(buildInfo)
	t.sample(buildInfo, 1, c.build...)
	if _, err := w.Write(t.Bytes()); err != nil {
		return fmt.Errorf("write the metrics: %w", err)
	}
	return c.unread
}

// read asks the source, and brings the marks in line with what it returned.
func (c *Collector) read() []node.Instance {
	all, err := c.source()
	if err != nil {
		c.errors++
		if c.log && (c.unread == nil || c.unread.Error() != err.Error()) { // not at every scrape
			slog.Error("metrics: read what is loaded", "err", err)
		}
	}
	c.unread = err
	var list []node.Instance
	seen := map[string]bool{}
	for _, i := range all {
		if seen[i.Name] {
			continue
		}
		seen[i.Name] = true
		list = append(list, i)
		if m := c.marks[i.Name]; m == nil || m.counters != i.Stats.Counters {
			c.marks[i.Name] = &mark{i.Stats.Counters, map[string]uint64{}}
		}
	}
	if err == nil { // what could not be read may be there again
		for name := range c.marks {
			if !seen[name] {
				delete(c.marks, name)
			}
		}
	}
	return list
}

// keep returns the highest value that the series ever had.
func (m *mark) keep(series string, n uint64) uint64 {
	n = max(n, m.high[series])
	m.high[series] = n
	return n
}

// text is Prometheus's text format, version 0.0.4. Its library would make the
// program half as large again, for three kinds of lines; the tests use it.
type text struct{ bytes.Buffer }

const contentType = "text/plain; version=0.0.4; charset=utf-8"

func (t *text) head(m Metric) {
	fmt.Fprintf(t, "# HELP %s %s%s.\n# TYPE %s %s\n", m.Name, strings.ToUpper(m.Meaning[:1]), m.Meaning[1:], m.Name, m.Type)
}

var escapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// sample takes a value for each of the metric's labels; more are not looked at.
func (t *text) sample(m Metric, n uint64, values ...string) {
	t.WriteString(m.Name)
	sep := "{"
	for i, l := range m.Labels {
		// The name of a cgroup can be any bytes.
		fmt.Fprintf(t, `%s%s="%s"`, sep, l, escapes.Replace(strings.ToValidUTF8(values[i], "?")))
		sep = ","
	}
	if len(m.Labels) > 0 {
		t.WriteByte('}')
	}
	fmt.Fprintf(t, " %d\n", n)
}
