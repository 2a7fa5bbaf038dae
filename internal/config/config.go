// SPDX-License-Identifier: Apache-2.0

// Package config is shunt's configuration file: its types, strict decoding,
// defaults and validation, each mistake with file, line and column. It does not
// talk to the kernel.
package config

import "net/netip"

// APIVersion is the only version of the file there is.
const APIVersion = "shunt/v1"

// Config is the whole file.
type Config struct {
	APIVersion string  `yaml:"apiVersion" json:"apiVersion"`
	Accel      Accel   `yaml:"accel" json:"accel"`
	Observe    Observe `yaml:"observe" json:"observe"`
}

// Accel says which local TCP connections take the short path. A connection is
// selected if one of its ends matches one of Select, and no end matches one of
// Exclude. An empty Select selects nothing.
type Accel struct {
	Select   []Selector `yaml:"select,omitempty" json:"select,omitempty"`
	Exclude  []Selector `yaml:"exclude,omitempty" json:"exclude,omitempty"`
	Accept   []string   `yaml:"accept,omitempty" json:"accept,omitempty"`     // guarantees given up: G4, G5, G6
	MaxQueue Bytes      `yaml:"maxQueue,omitempty" json:"maxQueue,omitempty"` // bytes that may wait at one receiver; 0 is the default
}

// Selector matches a socket if every field that is set matches it. Ports and
// addresses mean the connection's server and either of its addresses; cgroup,
// unit, netns and uids are those of the socket.
type Selector struct {
	Cgroup    string         `yaml:"cgroup,omitempty" json:"cgroup,omitempty"` // path from the root of cgroup2, with the globs * ? [a-z] within one level; children match too
	Unit      string         `yaml:"unit,omitempty" json:"unit,omitempty"`     // systemd unit, as redis-server.service, wherever it is in the tree
	Ports     []PortRange    `yaml:"ports,omitempty" json:"ports,omitempty"`
	Addresses []netip.Prefix `yaml:"addresses,omitempty" json:"addresses,omitempty"`
	Netns     string         `yaml:"netns,omitempty" json:"netns,omitempty"` // "host", a name in /run/netns, or a path
	UIDs      []uint32       `yaml:"uids,omitempty" json:"uids,omitempty"`
}

// PortRange is First to Last, both included; written 80 or 8000-8010.
type PortRange struct{ First, Last uint16 }

// Bytes is a size; written as a number or with KiB, MiB or GiB.
type Bytes uint64

// Observe says what is reported.
type Observe struct {
	Metrics netip.AddrPort `yaml:"metrics,omitempty" json:"metrics,omitzero"` // Prometheus; unset is off
}

// MaxSelectors is the number of selectors in Select and Exclude together: the
// kernel half keeps one bit for each.
const MaxSelectors = 64
