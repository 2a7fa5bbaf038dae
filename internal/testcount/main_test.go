package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestCounts(t *testing.T) {
	for _, tc := range []struct {
		name, source string
		want         count
		says         []string
	}{
		{
			name: "leaves only",
			source: `func TestTop(t *testing.T) {}
				func TestTree(t *testing.T) {
					t.Run("a", func(t *testing.T) {})
					t.Run("b/c", func(t *testing.T) { t.Run("d", func(t *testing.T) {}) })
				}`,
			want: count{passed: 3},
			says: []string{"ok    toy"},
		},
		{
			name: "failure and skip with their reasons",
			source: `func TestTree(t *testing.T) {
					t.Run("bad", func(t *testing.T) { t.Log("context"); t.Fatal("it broke") })
					t.Run("later", func(t *testing.T) { t.Skip("needs a moon") })
				}
				func TestGood(t *testing.T) { t.Log("nobody asked") }`,
			want: count{passed: 1, failed: 1, skipped: 1},
			says: []string{"context", "it broke", "needs a moon", "FAIL  toy"},
		},
		{
			name:   "a parent that fails by itself",
			source: `func TestTree(t *testing.T) { t.Run("a", func(t *testing.T) {}); t.Error("leak") }`,
			want:   count{passed: 1, failed: 1},
			says:   []string{"leak"},
		},
		{
			name: "a panic takes the rest along",
			source: `func TestA(t *testing.T) {}
				func TestB(t *testing.T) { panic("boom") }
				func TestC(t *testing.T) {}`,
			want: count{passed: 1, failed: 1},
			says: []string{"panic: boom"},
		},
		{
			name: "exit in the middle",
			source: `func TestA(t *testing.T) {}
				func TestB(t *testing.T) { os.Exit(0) }`,
			want: count{passed: 1, failed: 1},
		},
		{
			name: "failure outside any test",
			source: `func TestA(t *testing.T) {}
				func TestMain(m *testing.M) { m.Run(); println("cleanup failed"); os.Exit(3) }`,
			want: count{passed: 1, failed: 1},
			says: []string{"cleanup failed"},
		},
		{
			name:   "does not build",
			source: `func TestA(t *testing.T) { undefined() }`,
			want:   count{failed: 1},
			says:   []string{"undefined: undefined", "FAIL  toy"},
		},
		{
			name: "nothing to run",
			want: count{},
			says: []string{"-     toy  no tests"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			got, err := run(strings.NewReader(toy(t, tc.source)), &out)
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("got %v, want %v\n%s", got, tc.want, &out)
			}
			for _, s := range tc.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("the report does not say %q:\n%s", s, &out)
				}
			}
			if strings.Contains(out.String(), "nobody asked") {
				t.Errorf("the report has the log of a passed test:\n%s", &out)
			}
		})
	}
}

func TestKilledGoTest(t *testing.T) {
	events := `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestB"}
`
	got, err := run(strings.NewReader(events), &strings.Builder{})
	if want := (count{passed: 1, failed: 1}); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// toy returns what go test -json prints for a package with these tests.
func toy(t *testing.T, source string) string {
	t.Helper()
	dir := t.TempDir()
	imports := `import "testing"; `
	if strings.Contains(source, "os.") {
		imports += `import "os"; `
	}
	if source == "" {
		imports = ""
	}
	for name, text := range map[string]string{
		"go.mod":      "module toy\n\ngo 1.26\n",
		"toy_test.go": "package toy\n\n" + imports + source,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "test", "-json", "-count=1", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	out, err := cmd.Output() // fails when the toy does
	if len(out) == 0 {
		t.Fatalf("go test printed nothing: %v", err)
	}
	return string(out)
}
