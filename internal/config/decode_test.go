// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"
)

var asValues = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
var asAddress = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func prefixes(s ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range s {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

const head = "apiVersion: shunt/v1\n"

// selectors is a file with these selectors, in flow style.
func selectors(s ...string) string {
	text := head + "accel:\n  select:\n"
	for _, one := range s {
		text += "    - " + one + "\n"
	}
	return text
}

func selected(s ...Selector) Config {
	return Config{APIVersion: APIVersion, Accel: Accel{Select: s}}
}

var valid = []struct {
	name, text string
	want       Config
}{
	{"least", head, Config{APIVersion: APIVersion}},
	{"byte order mark and CRLF", "\ufeffapiVersion: shunt/v1\r\naccel: {}\r\n", Config{APIVersion: APIVersion}},
	{"empty lists of the file", head + "accel: {select: [], exclude: [], accept: []}\nobserve: {}\n", Config{APIVersion: APIVersion}},
	{"JSON", `{"apiVersion": "shunt/v1", "accel": {"select": [{"ports": [80]}]}}`, selected(Selector{Ports: []PortRange{{80, 80}}})},
	{"ports", selectors(`{ports: [1, 65535, 8000-8010, "443", 7-7]}`), selected(Selector{Ports: []PortRange{{1, 1}, {65535, 65535}, {8000, 8010}, {443, 443}, {7, 7}}})},
	{"addresses", selectors(`{addresses: [10.0.0.0/8, 10.0.0.1, 0.0.0.0/0, "::1", "::/0", "fd77::/16"]}`),
		selected(Selector{Addresses: prefixes("10.0.0.0/8", "10.0.0.1/32", "0.0.0.0/0", "::1/128", "::/0", "fd77::/16")})},
	{"IPv4 in IPv6", selectors(`{addresses: ["::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "::ffff:0:0/96"]}`),
		selected(Selector{Addresses: prefixes("10.0.0.1/32", "10.0.0.0/8", "0.0.0.0/0")})},
	{"cgroups", selectors(`cgroup: /`, `cgroup: /a/b-*/c?[a-z]`, `cgroup: '/a\\x2db/[^x]\['`), selected(
		Selector{Cgroup: "/"}, Selector{Cgroup: "/a/b-*/c?[a-z]"}, Selector{Cgroup: `/a\\x2db/[^x]\[`})},
	{"units", selectors(`unit: redis.service`, `unit: getty@tty1.service`, `unit: 'a\x2db.mount'`, `unit: -.slice`, `unit: x.socket`), selected(
		Selector{Unit: "redis.service"}, Selector{Unit: "getty@tty1.service"}, Selector{Unit: `a\x2db.mount`}, Selector{Unit: "-.slice"}, Selector{Unit: "x.socket"})},
	{"netns", selectors(`netns: host`, `netns: blue`, `netns: /proc/1/ns/net`, `netns: "1"`), selected(
		Selector{Netns: "host"}, Selector{Netns: "blue"}, Selector{Netns: "/proc/1/ns/net"}, Selector{Netns: "1"})},
	{"uids", selectors(`uids: [0, 1000, "33", 4294967294]`), selected(Selector{UIDs: []uint32{0, 1000, 33, 4294967294}})},
	{"user", selectors(`uids: [root]`), selected(Selector{UIDs: []uint32{0}})},
	{"all of it", head + "accel:\n  exclude: [{ports: [21], netns: host, uids: [5]}]\n  accept: [G6, G4]\n  maxQueue: 64KiB\nobserve:\n  metrics: '[::1]:9777'\n",
		Config{APIVersion: APIVersion, Accel: Accel{
			Exclude: []Selector{{Ports: []PortRange{{21, 21}}, Netns: "host", UIDs: []uint32{5}}}, Accept: []string{"G6", "G4"}, MaxQueue: 64 << 10,
		}, Observe: Observe{netip.MustParseAddrPort("[::1]:9777")}}},
	{"least queue", head + "accel: {maxQueue: 1024}\n", Config{APIVersion: APIVersion, Accel: Accel{MaxQueue: 1024}}},
	{"queue in bytes", head + "accel: {maxQueue: 1025}\n", Config{APIVersion: APIVersion, Accel: Accel{MaxQueue: 1025}}},
	{"largest queue", head + "accel: {maxQueue: 1GiB}\n", Config{APIVersion: APIVersion, Accel: Accel{MaxQueue: 1 << 30}}},
	{"metrics of a mapped address", head + "observe: {metrics: '[::ffff:127.0.0.1]:80'}\n", Config{APIVersion: APIVersion, Observe: Observe{netip.MustParseAddrPort("127.0.0.1:80")}}},
}

func TestParse(t *testing.T) {
	for _, c := range valid {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse("f", []byte(c.text))
			if err != nil {
				t.Fatalf("%s\n%v", c.text, err)
			}
			if diff := cmp.Diff(&c.want, got, asValues, asAddress); diff != "" {
				t.Errorf("%s\n%s", c.text, diff)
			}
			roundTrip(t, got)
		})
	}
}

// roundTrip writes c in every form there is and reads it back.
func roundTrip(t *testing.T, c *Config) {
	t.Helper()
	asYAML, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range [][]byte{asYAML, asJSON} {
		again, err := Parse("again", text)
		if err != nil {
			t.Fatalf("%s\n%v", text, err)
		}
		if diff := cmp.Diff(c, again, asValues, asAddress); diff != "" {
			t.Errorf("%s\n%s", text, diff)
		}
	}
	// The types alone, as a program reads what `check -o json` prints.
	for _, form := range []struct {
		text      []byte
		unmarshal func([]byte, any) error
	}{{asJSON, json.Unmarshal}, {asYAML, func(b []byte, v any) error { return yaml.Unmarshal(b, v) }}} {
		var decoded Config
		if err := form.unmarshal(form.text, &decoded); err != nil {
			t.Fatalf("%s\n%v", form.text, err)
		}
		if diff := cmp.Diff(c, &decoded, asValues, asAddress); diff != "" {
			t.Errorf("%s\n%s", form.text, diff)
		}
	}
}

// The written form is part of the interface: people compare it.
func TestMarshal(t *testing.T) {
	c := Config{APIVersion: APIVersion, Accel: Accel{
		Select: []Selector{{Ports: []PortRange{{80, 80}, {8000, 8010}}, Addresses: prefixes("10.0.0.0/8"), UIDs: []uint32{7}}}, MaxQueue: 4 << 20,
	}, Observe: Observe{netip.MustParseAddrPort("127.0.0.1:9777")}}
	wantJSON := `{"apiVersion":"shunt/v1","accel":{"select":[{"ports":[80,"8000-8010"],"addresses":["10.0.0.0/8"],"uids":[7]}],"maxQueue":"4MiB"},"observe":{"metrics":"127.0.0.1:9777"}}`
	if got, err := json.Marshal(c); err != nil || string(got) != wantJSON {
		t.Errorf("%s %v\nwant %s", got, err, wantJSON)
	}
	wantYAML := "apiVersion: shunt/v1\naccel:\n    select:\n        - ports:\n            - 80\n            - 8000-8010\n          addresses:\n            - 10.0.0.0/8\n          uids:\n            - 7\n    maxQueue: 4MiB\nobserve:\n    metrics: 127.0.0.1:9777\n"
	if got, err := yaml.Marshal(&c); err != nil || string(got) != wantYAML {
		t.Errorf("%s %v\nwant %s", got, err, wantYAML)
	}
	if got, err := json.Marshal(Config{APIVersion: APIVersion}); err != nil || string(got) != `{"apiVersion":"shunt/v1","accel":{},"observe":{}}` {
		t.Errorf("%s %v", got, err)
	}
}

var invalid = []struct {
	name, text string
	want       []string // whole lines, without the file's name
	schema     bool     // a schema can say it too
}{
	{"empty", "", []string{`1:1: the file is empty; it needs at least the line apiVersion: shunt/v1`}, true},
	{"comments alone", "# nothing\n", []string{`1:1: the file is empty; it needs at least the line apiVersion: shunt/v1`}, true},
	{"empty document", "---\n", []string{`1:1: the file is empty; it needs at least the line apiVersion: shunt/v1`}, true},
	{"two documents", head + "---\n" + head, []string{`2:1: a second document starts here; write one document a file`}, false},
	{"a list", "- a\n", []string{`1:1: a list, and keys and values are needed here, as key: value`}, true},
	{"not UTF-8", head + "# \xff\n", []string{`2:3: not UTF-8; save the file as UTF-8`}, false},
	{"UTF-16", "\xff\xfea\x00", []string{`1:1: not UTF-8; save the file as UTF-8`}, false},
	{"control character", head + "é: \x00\n", []string{`2:4: the character U+0000; remove it`}, false},
	{"tab", head + "accel:\n\tselect: []\n", []string{`3:1: a tab; YAML indents with spaces`}, false},
	{"syntax", head + "accel: [1\n", []string{`3:1: not YAML: did not find expected ',' or ']' while parsing a flow sequence that starts at 2:8`}, false},
	{"unknown anchor", head + "accel: *x\n", []string{`2:8: not YAML: unknown anchor 'x' referenced`}, false},
	{"aliases", head + "accel: &a\n  select: &b []\n  exclude: *b\n", []string{
		`2:8: the anchor &a; anchors are not used here, write the value wherever it is needed`,
		`3:11: the anchor &b; anchors are not used here, write the value wherever it is needed`,
		`4:12: the alias *b; aliases are not used here, write the value out`}, false},
	{"merge", head + "accel:\n  <<: {select: []}\n", []string{`3:3: accel: the merge key <<; merging is not used here, write the keys out`}, false},
	{"tag", head + "accel: !x {}\n", []string{`2:8: accel: the tag !x, and keys and values are needed here, as key: value`}, false},
	{"no version", "accel: {}\n", []string{`1:1: apiVersion: missing; add the line apiVersion: shunt/v1`}, true},
	{"other version", "apiVersion: shunt/v2\n", []string{`1:13: apiVersion: "shunt/v2" is not a version that this shunt reads; write shunt/v1`}, true},
	{"version of another kind", "apiVersion: 1\n", []string{`1:13: apiVersion: a number, and text is needed here; write it in quotes, as "1"`}, true},
	{"no value", head + "accel:\nobserve: {metrics: ~}\n", []string{
		`2:7: accel: no value; give it one or remove the key`,
		`3:20: observe.metrics: no value; give it one or remove the key`}, true},
	{"in the order of the file", "x: 1\naccel: &a {}\ny: 1\n", []string{
		`1:1: x: unknown key; the keys here are apiVersion, accel, observe`,
		`1:1: apiVersion: missing; add the line apiVersion: shunt/v1`,
		`2:8: the anchor &a; anchors are not used here, write the value wherever it is needed`,
		`3:1: y: unknown key; the keys here are apiVersion, accel, observe`}, true},
	{"columns are characters", head + "accel: {\"éé\": 1, zz: 2}\n", []string{
		`2:9: accel."éé": unknown key; the keys here are select, exclude, accept, maxQueue`,
		`2:18: accel.zz: unknown key; the keys here are select, exclude, accept, maxQueue`}, true},
	{"typos", head + "acel: {}\nobserve: {Metrics: 127.0.0.1:1}\naccel: {max_queue: 1MiB, selct: [], zzz: 1}\n", []string{
		`2:1: acel: unknown key; did you mean accel?`,
		`3:11: observe.Metrics: unknown key; did you mean metrics?`,
		`4:9: accel.max_queue: unknown key; did you mean maxQueue?`,
		`4:26: accel.selct: unknown key; did you mean select?`,
		`4:37: accel.zzz: unknown key; the keys here are select, exclude, accept, maxQueue`}, true},
	{"keys of another place", head + "select: []\naccel: {ports: [1], observe: {}}\n", []string{
		`2:1: select: unknown key; write it as accel.select; the keys here are apiVersion, accel, observe`,
		`3:9: accel.ports: unknown key; write it as accel.select[…].ports; the keys here are select, exclude, accept, maxQueue`,
		`3:21: accel.observe: unknown key; observe belongs at the left margin; the keys here are select, exclude, accept, maxQueue`}, true},
	{"keys that are no words", head + "1: 2\n? [a]\n: b\n\"a b\": c\n", []string{
		`2:1: 1: unknown key; the keys here are apiVersion, accel, observe`,
		`3:3: a list as a key; a key is one word: apiVersion, accel or observe`,
		`5:1: "a b": unknown key; the keys here are apiVersion, accel, observe`}, false},
	{"not in this version", head + "filter: {}\nbalance: []\nobserve: {flows: 1, export: 2}\n", []string{
		`2:1: filter: not in this version of shunt; remove it`,
		`3:1: balance: not in this version of shunt; remove it`,
		`4:11: observe.flows: not in this version of shunt; remove it`,
		`4:21: observe.export: not in this version of shunt; remove it`}, true},
	{"twice", head + "accel: {}\nobserve: {}\naccel: {select: 1}\n", []string{`4:1: accel: a second time, first on line 2; keep one`}, false},
	{"wrong kinds", head + "accel:\n  select: {ports: [1]}\n  exclude: 5\n  accept: G4\n  maxQueue: [1]\nobserve: x\n", []string{
		`3:11: accel.select: keys and values, and a list is needed here`,
		`4:12: accel.exclude: a number, and a list is needed here; write [5]`,
		`5:11: accel.accept: text, and a list is needed here; write [G4]`,
		`6:13: accel.maxQueue: a list, and a size as 4MiB is needed here`,
		`7:10: observe: text, and keys and values are needed here, as key: value`}, true},
	{"wrong kinds in a selector", selectors(`{cgroup: 5, unit: true, ports: 80, addresses: [1.5], netns: 2001-01-01, uids: [[1]]}`, `x`), []string{
		`4:16: accel.select[0].cgroup: a number, and text is needed here; write it in quotes, as "5"`,
		`4:25: accel.select[0].unit: true or false, and text is needed here; write it in quotes, as "true"`,
		`4:38: accel.select[0].ports: a number, and a list is needed here; write [80]`,
		`4:54: accel.select[0].addresses[0]: a number, and an address or a prefix, as 10.0.0.1 or 10.0.0.0/8, is needed here`,
		`4:67: accel.select[0].netns: a date, and text is needed here; write it in quotes, as "2001-01-01"`,
		`4:86: accel.select[0].uids[0]: a list, and a uid or the name of a user is needed here`,
		`5:7: accel.select[1]: text, and keys and values are needed here, as key: value`}, true},
	{"selector without a field", selectors(`{}`), []string{
		`4:7: accel.select[0]: a selector without a field would match everything; give it one of cgroup, unit, ports, addresses, netns or uids`}, true},
	{"empty lists", selectors(`{ports: [], uids: []}`), []string{
		`4:15: accel.select[0].ports: an empty list would match nothing; give it a value or remove the key`,
		`4:25: accel.select[0].uids: an empty list would match nothing; give it a value or remove the key`}, true},
	{"ports", selectors(`ports: [0, 65536, 99999999999999999999, -1, 80.5, http, 80-, 1-2-3]`), []string{
		`4:15: accel.select[0].ports[0]: 0 is out of range; ports are 1 to 65535`,
		`4:18: accel.select[0].ports[1]: 65536 is out of range; ports are 1 to 65535`,
		`4:25: accel.select[0].ports[2]: 99999999999999999999 is out of range; ports are 1 to 65535`,
		`4:47: accel.select[0].ports[3]: "-1" is not a port; write a number as 80, or a range as 8000-8010`,
		`4:51: accel.select[0].ports[4]: "80.5" is not a port; write a number as 80, or a range as 8000-8010`,
		`4:57: accel.select[0].ports[5]: "http" is not a port; write a number as 80, or a range as 8000-8010`,
		`4:63: accel.select[0].ports[6]: "80-" is not a port; write a number as 80, or a range as 8000-8010`,
		`4:68: accel.select[0].ports[7]: "1-2-3" is not a port; write a number as 80, or a range as 8000-8010`}, true},
	{"ports that can be read two ways", selectors(`ports: [080, 0x50, 1_000, 90-80, 80, "80"]`), []string{
		`4:15: accel.select[0].ports[0]: "080" is not a port; write a number as 80, or a range as 8000-8010`,
		`4:20: accel.select[0].ports[1]: "0x50" is not a port; write a number as 80, or a range as 8000-8010`,
		`4:26: accel.select[0].ports[2]: "1_000" is not a port; write a number as 80, or a range as 8000-8010`,
		`4:33: accel.select[0].ports[3]: 90-80 is backwards; write 80-90`,
		`4:44: accel.select[0].ports[5]: the same as accel.select[0].ports[4]; remove one of them`}, false},
	{"host bits", selectors(`addresses: [10.1.2.3/8, "fd77::1/16", "::ffff:10.1.0.1/112", 10.0.0.1/0]`), []string{
		`4:19: accel.select[0].addresses[0]: "10.1.2.3/8" has bits set after the prefix; write 10.0.0.0/8 for the network, or 10.1.2.3 for the one address`,
		`4:31: accel.select[0].addresses[1]: "fd77::1/16" has bits set after the prefix; write fd77::/16 for the network, or fd77::1 for the one address`,
		`4:45: accel.select[0].addresses[2]: "::ffff:10.1.0.1/112" has bits set after the prefix; write 10.1.0.0/16 for the network, or 10.1.0.1 for the one address`,
		`4:68: accel.select[0].addresses[3]: "10.0.0.1/0" has bits set after the prefix; write 0.0.0.0/0 for the network, or 10.0.0.1 for the one address`}, false},
	{"addresses", selectors(`addresses: [localhost, 10.0.0.0/33, 10.0.0/8, 127.1, 10.0.0.1:80]`), []string{
		`4:19: accel.select[0].addresses[0]: "localhost" is not an address; write an IP address or a prefix, as 10.0.0.1, 10.0.0.0/8 or fd00::/8`,
		`4:30: accel.select[0].addresses[1]: "10.0.0.0/33" is not a prefix; write one as 10.0.0.0/8 or fd00::/8`,
		`4:43: accel.select[0].addresses[2]: "10.0.0/8" is not a prefix; write one as 10.0.0.0/8 or fd00::/8`,
		`4:53: accel.select[0].addresses[3]: a number, and an address or a prefix, as 10.0.0.1 or 10.0.0.0/8, is needed here`,
		`4:60: accel.select[0].addresses[4]: "10.0.0.1:80" is not an address; write an IP address or a prefix, as 10.0.0.1, 10.0.0.0/8 or fd00::/8`}, true},
	{"address with a zone", selectors(`addresses: ["fe80::1%lo"]`), []string{
		`4:19: accel.select[0].addresses[0]: "fe80::1%lo" has a zone; write fe80::1`}, true},
	{"the same address twice", selectors(`addresses: [10.0.0.1, "::ffff:10.0.0.1"]`), []string{
		`4:29: accel.select[0].addresses[1]: the same as accel.select[0].addresses[0]; remove one of them`}, false},
	{"cgroups", selectors(`cgroup: ""`, `cgroup: a`, `cgroup: /a/../b`, `cgroup: /a//b/`, `cgroup: /a/**`, `cgroup: /sys/fs/cgroup/a`, `cgroup: "/a\n"`, `cgroup: /[!a]`), []string{
		`4:15: accel.select[0].cgroup: empty; give it a value or remove the key`,
		`5:15: accel.select[1].cgroup: "a" does not start with /; write the whole path, as /system.slice/redis-server.service`,
		`6:15: accel.select[2].cgroup: "/a/../b" contains ..; write the path without it`,
		`7:15: accel.select[3].cgroup: "/a//b/" has an empty level; write /a/b`,
		`8:15: accel.select[4].cgroup: "**": a glob stays within one level; write one *, the children of what matches match too`,
		`9:15: accel.select[5].cgroup: "/sys/fs/cgroup/a" is a path of the file system; write it from the root of cgroup2, as /system.slice/redis-server.service`,
		`10:15: accel.select[6].cgroup: "/a\n" contains a control character; remove it`,
		`11:15: accel.select[7].cgroup: "[!a]": [! is not negation here; write [^`}, true},
	{"globs", selectors(`cgroup: /[a`, `cgroup: '/a\x2db'`, `cgroup: '/a\'`), []string{
		`4:15: accel.select[0].cgroup: "[a" is not a valid glob; close the [, or write \[ for the character`,
		`5:15: accel.select[1].cgroup: "a\\x2db": \x would match x alone; write \\ for a backslash, as systemd puts it into names`,
		`6:15: accel.select[2].cgroup: "a\\" is not a valid glob; end it in \\ for a backslash`}, false},
	{"units", selectors(`unit: redis`, `unit: a/b.service`, `unit: "*.service"`, `unit: a.timer`, `unit: a@.service`, `unit: .service`, `unit: a b.service`, `unit: "@a.service"`, `unit: `+strings.Repeat("a", 248)+`.service`), []string{
		`4:13: accel.select[0].unit: "redis" has no suffix of a unit; write redis.service, or with .scope, .slice, .socket, .mount or .swap`,
		`5:13: accel.select[1].unit: "a/b.service" is a path; write it as cgroup, or the last level alone as unit`,
		`6:13: accel.select[2].unit: "*.service": a unit has no globs; write it as cgroup, as /system.slice/*.service`,
		`7:13: accel.select[3].unit: "a.timer" has no processes; name the service that it starts`,
		`8:13: accel.select[4].unit: "a@.service" is a template, which has no processes; name an instance, as a@1.service`,
		`9:13: accel.select[5].unit: ".service" has no name; write one as redis-server.service`,
		`10:13: accel.select[6].unit: "a b.service" is not a unit: ' ' cannot be in its name; systemd-escape(1) prints it as systemd does`,
		`11:13: accel.select[7].unit: "@a.service" has no name before the @; write one as getty@tty1.service`,
		`12:13: accel.select[8].unit: longer than 255 bytes; no such name can exist`}, true},
	{"netns", selectors(`netns: a/b`, `netns: ..`, `netns: /a/../b`, `netns: /`, `netns: 5`), []string{
		`4:14: accel.select[0].netns: "a/b" is not a namespace; write host, a name in /run/netns, or a path that starts with /`,
		`5:14: accel.select[1].netns: ".." is not a namespace; write host, a name in /run/netns, or a path that starts with /`,
		`6:14: accel.select[2].netns: "/a/../b" contains ..; write the path without it`,
		`7:14: accel.select[3].netns: "/" is not a namespace; write host, a name in /run/netns, or a path`,
		`8:14: accel.select[4].netns: a number, and text is needed here; write it in quotes, as "5"`}, true},
	{"uids", selectors(`uids: [-1, 4294967295, a b, "0x1", 1.5]`), []string{
		`4:14: accel.select[0].uids[0]: "-1" is neither a uid nor the name of a user; write 1000 or www-data`,
		`4:18: accel.select[0].uids[1]: 4294967295 is not a uid; uids are 0 to 4294967294`,
		`4:30: accel.select[0].uids[2]: "a b" is neither a uid nor the name of a user; write 1000 or www-data`,
		`4:35: accel.select[0].uids[3]: "0x1" is neither a uid nor the name of a user; write 1000 or www-data`,
		`4:42: accel.select[0].uids[4]: "1.5" is neither a uid nor the name of a user; write 1000 or www-data`}, true},
	{"users", selectors(`uids: [no-such-user-of-shunt, 0, root, 10-20]`), []string{
		`4:14: accel.select[0].uids[0]: no user "no-such-user-of-shunt" on this machine; create the user first, or write a uid`,
		`4:40: accel.select[0].uids[2]: the same as accel.select[0].uids[1]; remove one of them`,
		`4:46: accel.select[0].uids[3]: "10-20": uids have no ranges; write each uid`}, false},
	{"the same selector twice", head + "accel:\n  select: [{ports: [1, 2], unit: a.service}, {unit: a.service, ports: [2, 1]}]\n  exclude: [{ports: [2, 1], unit: a.service}, {ports: [1]}]\n", []string{
		`3:46: accel.select[1]: matches the same as accel.select[0]; remove one of them`,
		`4:13: accel.exclude[0]: matches the same as accel.select[0]; remove one of them`}, false},
	{"accept", head + "accel: {accept: [G4, g5, G1, G44, 4, G4]}\n", []string{
		`2:22: accel.accept[1]: "g5"; write G5`,
		`2:26: accel.accept[2]: G1 cannot be given up; only G4, G5 or G6 can`,
		`2:30: accel.accept[3]: "G44" is not a guarantee; write G4, G5 or G6`,
		`2:35: accel.accept[4]: a number, and one of G4, G5 or G6 is needed here`,
		`2:38: accel.accept[5]: the same as accel.accept[0]; remove one of them`}, true},
	{"too small a queue", head + "accel: {maxQueue: 1023}\n", []string{`2:19: accel.maxQueue: "1023" is not between 1KiB and 1GiB; the default is 4MiB`}, true},
	{"too large a queue", head + "accel: {maxQueue: 2GiB}\n", []string{`2:19: accel.maxQueue: "2GiB" is not between 1KiB and 1GiB; the default is 4MiB`}, true},
	{"too large a number", head + "accel: {maxQueue: 99999999999GiB}\n", []string{`2:19: accel.maxQueue: "99999999999GiB" is too large; the largest size is 1GiB`}, true},
	{"no queue", head + "accel: {maxQueue: 0}\n", []string{`2:19: accel.maxQueue: "0" is not between 1KiB and 1GiB; the default is 4MiB`}, true},
	{"queue 4M", head + "accel: {maxQueue: 4M}\n", []string{`2:19: accel.maxQueue: "4M" is not a size; write 4MiB`}, true},
	{"queue 4 mb", head + "accel: {maxQueue: 4 mb}\n", []string{`2:19: accel.maxQueue: "4 mb" is not a size; write 4MiB`}, true},
	{"queue of words", head + "accel: {maxQueue: lots}\n", []string{`2:19: accel.maxQueue: "lots" is not a size; write a number of bytes, or one with KiB, MiB or GiB, as 4MiB`}, true},
	{"metrics by name", head + "observe: {metrics: localhost:9777}\n", []string{`2:20: observe.metrics: "localhost:9777": "localhost" is a name, and names change; write its IP address, as 127.0.0.1:9777`}, true},
	{"metrics everywhere", head + "observe: {metrics: ':9777'}\n", []string{`2:20: observe.metrics: ":9777" names no address; write 127.0.0.1:9777 for this machine alone, or [::]:9777 for every address`}, true},
	{"metrics without a port", head + "observe: {metrics: 127.0.0.1}\n", []string{`2:20: observe.metrics: "127.0.0.1" is not an address with a port; write one as 127.0.0.1:9777 or [::1]:9777`}, true},
	{"metrics at port 0", head + "observe: {metrics: 127.0.0.1:0}\n", []string{`2:20: observe.metrics: "127.0.0.1:0": port 0 is a port that nobody can know; write one of 1 to 65535, as 127.0.0.1:9777`}, true},
	{"metrics without brackets", head + "observe: {metrics: '::1:9777'}\n", []string{`2:20: observe.metrics: "::1:9777": write an IPv6 address in brackets, as [::1]:9777`}, true},
	{"metrics as a number", head + "observe: {metrics: 9777}\n", []string{`2:20: observe.metrics: a number, and text is needed here; write it in quotes, as "9777"`}, true},
}

func TestMistakes(t *testing.T) {
	for _, c := range invalid {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse("f", []byte(c.text))
			if err == nil {
				t.Fatalf("%s\nparsed as %+v", c.text, got)
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T: %v", err, err)
			}
			var lines []string
			for _, m := range e.Mistakes {
				if m.File != "f" {
					t.Errorf("file %q", m.File)
				}
				lines = append(lines, strings.TrimPrefix(m.String(), "f:"))
			}
			if diff := cmp.Diff(c.want, lines); diff != "" {
				t.Errorf("%s\n%s", c.text, diff)
			}
		})
	}
}

func TestTooMany(t *testing.T) {
	text := selectors()
	for i := range MaxSelectors {
		text += fmt.Sprintf("    - ports: [%d]\n", i+1)
	}
	if c, err := Parse("f", []byte(text)); err != nil || len(c.Accel.Select) != MaxSelectors {
		t.Fatalf("%d selectors: %v", MaxSelectors, err)
	}
	_, err := Parse("f", []byte(text+"  exclude: [{ports: [100]}, {ports: [101]}]\n"))
	want := "f:68:13: accel.exclude[0]: more than 64 selectors in select and exclude together; put ports, addresses or uids of one kind into one selector"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}

	ports := func(n int) []byte {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprint(i+1))
		}
		return []byte(selectors("ports: [" + strings.Join(list, ",") + "]"))
	}
	if _, err := Parse("f", ports(MaxItems)); err != nil {
		t.Error(err)
	}
	if _, err := Parse("f", ports(MaxItems+1)); err == nil || !strings.Contains(err.Error(), "ports[1024]: more than 1024; ") {
		t.Error(err)
	}
}

func TestSize(t *testing.T) {
	file := filepath.Join(t.TempDir(), "big.yaml")
	write := func(size int) {
		t.Helper()
		text := append([]byte(head+"#"), bytes.Repeat([]byte{'x'}, size-len(head)-1)...)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(MaxFile)
	if _, err := Load(file); err != nil {
		t.Error(err)
	}
	write(MaxFile + 1)
	want := file + ":1:1: the file is larger than 1MiB; this is not a configuration of shunt"
	if _, err := Load(file); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := Load(file + ".missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// What is small in the file must not grow: each of these is refused without
// being followed.
func TestBombs(t *testing.T) {
	laughs := "a: &a [x]\n"
	for c := 'b'; c < 'z'; c++ {
		laughs += fmt.Sprintf("%c: &%[1]c [%s]\n", c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	for name, text := range map[string]string{
		"laughs":   laughs,
		"itself":   head + "accel: &a [*a]\n",
		"deep":     head + "accel: " + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000),
		"deeper":   strings.Repeat("- ", 100_000),
		"brackets": strings.Repeat("[", MaxFile),
		"braces":   strings.Repeat("{a: ", 5_000) + strings.Repeat("}", 5_000),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f", []byte(text))
			if err == nil {
				t.Fatal("parsed")
			}
			if text := err.Error(); len(text) > 64<<10 {
				t.Errorf("%d bytes of messages", len(text))
			}
		})
	}
}

func TestExample(t *testing.T) {
	c, err := Load("../../docs/shunt.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c)
	// It says that it is an example of every key.
	text, err := os.ReadFile("../../docs/shunt.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range places {
		for _, key := range place.keys {
			if !bytes.Contains(text, []byte(key+":")) {
				t.Errorf("the example has no %s", key)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range valid {
		f.Add([]byte(c.text))
	}
	for _, c := range invalid {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err == nil {
			roundTrip(t, c)
			if changes := Diff(c, c); len(changes) > 0 {
				t.Errorf("differs from itself: %v", changes)
			}
			return
		}
		var e *Error
		if !errors.As(err, &e) || len(e.Mistakes) == 0 {
			t.Fatalf("%T: %v", err, err)
		}
		for i, m := range e.Mistakes {
			if m.Line < 1 || m.Column < 1 || m.Msg == "" || i > 0 && m.Line < e.Mistakes[i-1].Line {
				t.Errorf("mistake %d of %v", i, e)
			}
		}
	})
}
