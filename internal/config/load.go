// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Load reads a file.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse decodes data; name stands for it in errors.
func Parse(name string, data []byte) (*Config, error) {
	var c Config
	if err := yaml.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("%s:1:1: %w", name, err)
	}
	return &c, nil
}

// UnmarshalYAML reads 80 or 8000-8010.
func (p *PortRange) UnmarshalYAML(n *yaml.Node) error {
	first, last, ok := strings.Cut(n.Value, "-")
	if !ok {
		last = first
	}
	a, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return err
	}
	b, err := strconv.ParseUint(last, 10, 16)
	p.First, p.Last = uint16(a), uint16(b)
	return err
}

// Change is one difference.
type Change struct {
	Path string `json:"path"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

func (c Change) String() string { return fmt.Sprintf("%s: %s -> %s", c.Path, c.Old, c.New) }

// Diff compares.
func Diff(before, after *Config) []Change {
	if before == nil {
		before = &Config{}
	}
	if reflect.DeepEqual(before, after) {
		return nil
	}
	return []Change{{"accel", fmt.Sprint(before.Accel), fmt.Sprint(after.Accel)}}
}
