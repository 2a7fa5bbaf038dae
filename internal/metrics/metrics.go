// SPDX-License-Identifier: Apache-2.0

// Package metrics shows what the planes count to Prometheus.
//
// Names are stable: shunt_<plane>_…, base units, counters end in _total. No label
// holds an address: a busy machine would make a series of each.
package metrics

import (
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
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
	descs    map[string]*prometheus.Desc
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
	c := &Collector{
		source:   source,
		families: families(),
		descs:    map[string]*prometheus.Desc{},
		build:    []string{version, runtime.Version(), kernelRelease()},
		marks:    map[string]*mark{},
	}
	for _, m := range Describe() {
		c.descs[m.Name] = prometheus.NewDesc(m.Name, strings.ToUpper(m.Meaning[:1])+m.Meaning[1:]+".", m.Labels, nil)
	}
	return c
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock() // two scrapes at once must not overtake each other's marks
	defer c.mu.Unlock()
	list, err := c.source()
	if err != nil {
		c.errors++
		if c.log && (c.unread == nil || c.unread.Error() != err.Error()) { // not at every scrape
			slog.Error("metrics: read what is loaded", "err", err)
		}
	}
	c.unread = err
	seen := map[string]bool{}
	for _, i := range list {
		name := strings.ToValidUTF8(i.Name, "?")
		if seen[name] {
			continue
		}
		seen[name] = true
		c.collect(ch, name, i)
	}
	if err == nil { // what could not be read may be there again
		for name := range c.marks {
			if !seen[name] {
				delete(c.marks, name)
			}
		}
	}
	c.send(ch, scrapeErrors, c.errors)
	c.send(ch, buildInfo, 1, c.build...)
}

func (c *Collector) collect(ch chan<- prometheus.Metric, name string, i node.Instance) {
	m := c.marks[name]
	if m == nil || m.counters != i.Stats.Counters {
		m = &mark{i.Stats.Counters, map[string]uint64{}}
		c.marks[name] = m
	}
	for _, f := range c.families {
		for _, v := range f.values {
			n, known := f.read(i, v)
			if !known {
				continue
			}
			if f.Type == counter {
				key := f.Name + " " + v
				n = max(n, m.high[key])
				m.high[key] = n
			}
			labels := []string{name, v}
			c.send(ch, f.Metric, n, labels[:len(f.Labels)]...)
		}
	}
	c.send(ch, instanceInfo, 1, name, strings.ToValidUTF8(i.Cgroup, "?"))
}

func (c *Collector) send(ch chan<- prometheus.Metric, m Metric, n uint64, labels ...string) {
	kind := prometheus.GaugeValue
	if m.Type == counter {
		kind = prometheus.CounterValue
	}
	ch <- prometheus.MustNewConstMetric(c.descs[m.Name], kind, float64(n), labels...)
}

// WriteText writes everything once in Prometheus's text format. Where an instance
// could not be read, shunt_scrape_errors_total says so, and the error does.
func (c *Collector) WriteText(w io.Writer) error {
	registry := prometheus.NewRegistry()
	if err := registry.Register(c); err != nil {
		return fmt.Errorf("register the metrics: %w", err)
	}
	families, err := registry.Gather()
	if err != nil {
		return fmt.Errorf("gather the metrics: %w", err)
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
			return fmt.Errorf("write %s: %w", f.GetName(), err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unread
}
