// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"github.com/shuntnet/shunt/docs/schema"
	"github.com/shuntnet/shunt/internal/accel"
	"github.com/shuntnet/shunt/internal/config"
)

// shuntCommand runs the command line in this process.
func shuntCommand(stdin string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(args)
	err = root.Execute()
	return out.String(), errs.String(), err
}

func TestCheck(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shunt.yaml")
	const good = "apiVersion: shunt/v1\naccel: {select: [{ports: [80, 90-99]}]}\n"
	if err := os.WriteFile(file, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	const summary = ": ok: 1 selector, no exclusions, metrics off\n"
	const inJSON = `{
  "apiVersion": "shunt/v1",
  "accel": {
    "select": [
      {
        "ports": [
          80,
          "90-99"
        ]
      }
    ],
    "maxQueue": "4MiB"
  },
  "observe": {}
}
`
	for _, c := range []struct {
		name, stdin    string
		args           []string
		stdout, stderr string
		status         int
	}{
		{"file", "", []string{"check", file}, file + summary, "", 0},
		{"stdin", good, []string{"check", "-"}, "stdin" + summary, "", 0},
		{"json", good, []string{"check", "-o", "json", "-"}, inJSON, "", 0},
		{"its own json", inJSON, []string{"check", "-o", "json", "-"}, inJSON, "", 0},
		{"mistakes", "acel: 1\naccel: {maxQueue: 1}\n", []string{"check", "-"}, "", `stdin:1:1: acel: unknown key; did you mean accel?
stdin:1:1: apiVersion: missing; add the line apiVersion: shunt/v1
stdin:2:19: accel.maxQueue: "1" is not between 1KiB and 1GiB; the default is 4MiB
`, 1},
		{"mistakes and json", "apiVersion: 1", []string{"check", "-o", "json", "-"}, "", `stdin:1:13: apiVersion: a number, and text is needed here; write it in quotes, as "1"` + "\n", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, err := shuntCommand(c.stdin, c.args...)
			if stdout != c.stdout || stderr != c.stderr {
				t.Errorf("stdout:\n%s\nstderr:\n%s", cmp.Diff(c.stdout, stdout), cmp.Diff(c.stderr, stderr))
			}
			var exit *ExitError
			switch {
			case c.status == 0 && err == nil:
			case errors.As(err, &exit) && exit.Code == c.status && exit.Err == nil: // said already
			default:
				t.Errorf("status %d: %v", c.status, err)
			}
		})
	}
	if _, _, err := shuntCommand("", "check", file+".missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, _, err := shuntCommand(good, "check", "-o", "xml", "-"); err == nil {
		t.Error("-o xml")
	}
}

func TestCheckPrintsYAML(t *testing.T) {
	stdout, _, err := shuntCommand("apiVersion: shunt/v1\nobserve: {metrics: 127.0.0.1:1}\n", "check", "-o", "yaml", "-")
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := yaml.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	want := any(map[string]any{"apiVersion": "shunt/v1", "accel": map[string]any{"maxQueue": "4MiB"}, "observe": map[string]any{"metrics": "127.0.0.1:1"}})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSchema(t *testing.T) {
	stdout, _, err := shuntCommand("", "schema")
	if err != nil || stdout != string(schema.JSON) {
		t.Errorf("%v: %d bytes, want %d", err, len(stdout), len(schema.JSON))
	}
}

// config does not know the planes: what it calls the default must be theirs.
func TestDefaults(t *testing.T) {
	if config.DefaultQueue != accel.DefaultMaxQueue {
		t.Errorf("maxQueue: config has %v, accel %v", config.DefaultQueue, config.Bytes(accel.DefaultMaxQueue))
	}
}
