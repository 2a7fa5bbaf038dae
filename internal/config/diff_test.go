// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDiff(t *testing.T) {
	for _, c := range []struct {
		name, before, after string // what follows apiVersion; in flow style
		want                []string
	}{
		{"nothing", "", "", nil},
		{"defaults written out", "", "accel: {maxQueue: 4MiB, select: [], accept: []}", nil},
		{"another order", "accel: {select: [{ports: [1, 2]}, {unit: a.service}], accept: [G4, G5]}", "accel: {accept: [G5, G4], select: [{unit: a.service}, {ports: [2, 1]}]}", nil},
		{"another way of writing", "accel: {select: [{uids: [root], addresses: [10.0.0.1]}]}", `accel: {select: [{uids: [0], addresses: ["::ffff:10.0.0.1/128"]}]}`, nil},
		{"a port more", "accel: {select: [{unit: a.service}, {ports: [80]}]}", "accel: {select: [{unit: a.service}, {ports: [80, 443]}]}",
			[]string{"accel.select[1].ports: 80 -> 80,443"}},
		{"a field more", "accel: {exclude: [{ports: [80]}]}", "accel: {exclude: [{ports: [80], netns: blue}]}",
			[]string{"accel.exclude[0].netns: none -> blue"}},
		{"the first removed", "accel: {select: [{unit: a.service}, {unit: b.service}, {unit: c.service}]}", "accel: {select: [{unit: b.service}, {unit: c.service}]}",
			[]string{"accel.select: - {unit: a.service}"}},
		{"one added in front", "accel: {select: [{unit: b.service}]}", "accel: {select: [{cgroup: /a, ports: [80, 90-99], uids: [1]}, {unit: b.service}]}",
			[]string{"accel.select: + {cgroup: /a, ports: 80,90-99, uids: 1}"}},
		{"another one", "accel: {select: [{unit: a.service}]}", "accel: {select: [{unit: b.service}]}",
			[]string{"accel.select: - {unit: a.service}", "accel.select: + {unit: b.service}"}},
		{"the most alike is the one edited", "accel: {select: [{ports: [80], uids: [1]}, {ports: [80], uids: [2], netns: blue}]}", "accel: {select: [{ports: [80], uids: [2], netns: red}]}",
			[]string{"accel.select: - {ports: 80, uids: 1}", "accel.select[0].netns: blue -> red"}},
		{"moved", "accel: {select: [{ports: [80]}]}", "accel: {exclude: [{ports: [80]}]}",
			[]string{"accel.select: - {ports: 80}", "accel.exclude: + {ports: 80}"}},
		{"a name with a comma", "", "accel: {select: [{netns: 'a, b'}]}", []string{`accel.select: + {netns: "a, b"}`}},
		{"the rest", "accel: {accept: [G4]}", "accel: {accept: [G6, G5], maxQueue: 1MiB}\nobserve: {metrics: 127.0.0.1:9777}",
			[]string{"accel.accept: G4 -> G5,G6", "accel.maxQueue: 4MiB -> 1MiB", "observe.metrics: off -> 127.0.0.1:9777"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			parse := func(text string) *Config {
				t.Helper()
				p, err := Parse("f", []byte(head+text))
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			var got []string
			for _, change := range Diff(parse(c.before), parse(c.after)) {
				got = append(got, change.String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if back := Diff(parse(c.after), parse(c.before)); len(back) != len(c.want) {
				t.Errorf("%d changes there, and back %v", len(c.want), back)
			}
		})
	}
}

func TestDiffOfNothing(t *testing.T) {
	if changes := Diff(nil, nil); len(changes) > 0 {
		t.Error(changes)
	}
	c := selected(Selector{Unit: "a.service"})
	got, err := json.Marshal(Diff(nil, &c))
	if want := `[{"op":"add","path":"accel.select","new":"{unit: a.service}"}]`; err != nil || string(got) != want {
		t.Errorf("%s %v\nwant %s", got, err, want)
	}
}

func TestSummary(t *testing.T) {
	for text, want := range map[string]string{
		"": "no selectors, no exclusions (nothing is accelerated), metrics off",
		"accel: {select: [{ports: [1]}], exclude: [{ports: [2]}, {ports: [3]}], accept: [G4, G6]}\nobserve: {metrics: 10.77.0.1:1}": "1 selector, 2 exclusions, G4 and G6 given up, metrics 10.77.0.1:1",
	} {
		c, err := Parse("f", []byte(head+text))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Summary(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
