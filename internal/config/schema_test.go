// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/shuntnet/shunt/docs/schema"
)

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema.JSON))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("shunt.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("shunt.schema.json") // checks it against draft 2020-12 too
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON is the text as an editor gives it to a schema: the values of YAML.
func asJSON(t *testing.T, text []byte) any {
	t.Helper()
	var value any
	if err := yaml.Unmarshal(text, &value); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSchemaAgrees(t *testing.T) {
	s := compileSchema(t)
	for _, c := range valid {
		t.Run("valid/"+c.name, func(t *testing.T) {
			if err := s.Validate(asJSON(t, []byte(strings.TrimPrefix(c.text, "\ufeff")))); err != nil {
				t.Errorf("%s\n%v", c.text, err)
			}
		})
	}
	t.Run("valid/example", func(t *testing.T) {
		text, err := os.ReadFile("../../docs/shunt.example.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(asJSON(t, text)); err != nil {
			t.Error(err)
		}
	})
	for _, c := range invalid {
		if !c.schema {
			continue
		}
		t.Run("invalid/"+c.name, func(t *testing.T) {
			if err := s.Validate(asJSON(t, []byte(c.text))); err == nil {
				t.Errorf("the schema accepts\n%s", c.text)
			}
		})
		// A file of several selectors must fail for each of them.
		if n := strings.Count(c.text, "\n    - "); n > 1 {
			parts := strings.Split(c.text, "\n    - ")
			for _, part := range parts[1:] {
				one := parts[0] + "\n    - " + part
				if _, err := Parse("f", []byte(one)); err == nil {
					t.Errorf("%s: the decoder accepts\n%s", c.name, one)
				}
				if err := s.Validate(asJSON(t, []byte(one))); err == nil {
					t.Errorf("%s: the schema accepts\n%s", c.name, one)
				}
			}
		}
	}
}

// A value that the schema refuses and the decoder accepts is a lie to whoever
// edits with it. The other way round is left to `shunt check`.
func TestSchemaIsNotStricter(t *testing.T) {
	s := compileSchema(t)
	for _, item := range []string{
		"cgroup: /", "cgroup: /...", "cgroup: /a/.b", "cgroup: '/a/[^!]'", "cgroup: /a/..b", "cgroup: /é",
		"unit: a.b.service", "unit: a@b@c.service", "unit: -.mount", "unit: 'a\\x2d.swap'", "unit: _.scope", "unit: a@.b.service",
		"netns: ...", "netns: a b", "netns: /a/...", "netns: é",
		"addresses: ['::', '::/0', '::1.2.3.4', '1:2:3:4:5:6:7:8/128', '255.255.255.255', '0.0.0.0/0', '::FFFF:1.2.3.4/128']",
		"ports: ['1', '65535', '1-65535', 2-2]", "uids: [0, '1']", "uids: [root]",
	} {
		text := []byte(selectors("{" + item + "}"))
		if _, err := Parse("f", text); err != nil {
			t.Error(err)
		}
		if err := s.Validate(asJSON(t, text)); err != nil {
			t.Errorf("%s: %v", item, err)
		}
	}
	for _, size := range []string{"1024", "'1024'", "1073741824", "'1073741824'", "1KiB", "1048576KiB", "1024MiB", "1GiB"} {
		text := []byte(head + "accel: {maxQueue: " + size + "}")
		if _, err := Parse("f", text); err != nil {
			t.Error(err)
		}
		if err := s.Validate(asJSON(t, text)); err != nil {
			t.Errorf("%s: %v", size, err)
		}
	}
	for _, metrics := range []string{"0.0.0.0:1", "255.255.255.255:65535", "'[::]:9777'", "'[fe80::1%eth0]:80'", "'[::ffff:1.2.3.4]:80'"} {
		text := []byte(head + "observe: {metrics: " + metrics + "}")
		if _, err := Parse("f", text); err != nil {
			t.Error(err)
		}
		if err := s.Validate(asJSON(t, text)); err != nil {
			t.Errorf("%s: %v", metrics, err)
		}
	}
}

// The types, the decoder and the schema name the same keys.
func TestKeys(t *testing.T) {
	type object struct {
		Properties           map[string]object
		AdditionalProperties any
		MaxItems, Maximum    int
		Enum                 []string
		Items                *object
		OneOf                []object
		Minimum              int
		Default              string
	}
	var root struct {
		object
		Defs map[string]object `json:"$defs"`
	}
	if err := json.Unmarshal(schema.JSON, &root); err != nil {
		t.Fatal(err)
	}
	accel, observe, selector := root.Properties["accel"], root.Properties["observe"], root.Defs["selector"]
	for _, c := range []struct {
		name    string
		schema  object
		decoder []string
		of      any
	}{
		{"root", root.object, keys(rootFields), Config{}},
		{"accel", accel, keys(accelFields), Accel{}},
		{"selector", selector, keys(selectorFields), Selector{}},
		{"observe", observe, keys(observeFields), Observe{}},
	} {
		if c.schema.AdditionalProperties != false {
			t.Errorf("%s: the schema lets other keys pass", c.name)
		}
		var inYAML, inJSON []string
		for i := range reflect.TypeOf(c.of).NumField() {
			tag := reflect.TypeOf(c.of).Field(i).Tag
			y, _, _ := strings.Cut(tag.Get("yaml"), ",")
			j, _, _ := strings.Cut(tag.Get("json"), ",")
			inYAML, inJSON = append(inYAML, y), append(inJSON, j)
		}
		if diff := cmp.Diff(inYAML, c.decoder); diff != "" {
			t.Errorf("%s: types and decoder\n%s", c.name, diff)
		}
		if diff := cmp.Diff(inJSON, c.decoder); diff != "" {
			t.Errorf("%s: types as JSON and decoder\n%s", c.name, diff)
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(c.decoder)), slices.Sorted(maps.Keys(c.schema.Properties))); diff != "" {
			t.Errorf("%s: decoder and schema\n%s", c.name, diff)
		}
	}
	// And the same bounds.
	for _, c := range []struct {
		name      string
		got, want int
	}{
		{"select", accel.Properties["select"].MaxItems, MaxSelectors},
		{"exclude", accel.Properties["exclude"].MaxItems, MaxSelectors},
		{"ports", selector.Properties["ports"].MaxItems, MaxItems},
		{"addresses", selector.Properties["addresses"].MaxItems, MaxItems},
		{"uids", selector.Properties["uids"].MaxItems, MaxItems},
		{"uid", selector.Properties["uids"].Items.OneOf[0].Maximum, maxUID},
		{"least queue", accel.Properties["maxQueue"].OneOf[0].Minimum, int(MinQueue)},
		{"largest queue", accel.Properties["maxQueue"].OneOf[0].Maximum, int(MaxMaxQueue)},
	} {
		if c.got != c.want {
			t.Errorf("%s: the schema has %d, the decoder %d", c.name, c.got, c.want)
		}
	}
	if diff := cmp.Diff(acceptable, accel.Properties["accept"].Items.Enum); diff != "" {
		t.Error(diff)
	}
	if d := accel.Properties["maxQueue"].Default; d != DefaultQueue.String() {
		t.Errorf("default %s", d)
	}
}
