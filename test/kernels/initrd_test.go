// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestLoadOrder(t *testing.T) {
	dep := `kernel/net/sched/cls_bpf.ko.xz:
kernel/net/a-b.ko.xz: kernel/net/c.ko.xz kernel/net/d.ko.xz
kernel/net/c.ko.xz: kernel/net/d.ko.xz
kernel/net/d.ko.xz:
kernel/net/e.ko: kernel/net/d.ko.xz
not a line of it
`
	want := []string{"kernel/net/d.ko.xz", "kernel/net/c.ko.xz", "kernel/net/a-b.ko.xz", "kernel/net/e.ko"}
	if got := loadOrder(dep, []string{"a_b", "absent", "e", "c"}); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

type entry struct {
	mode, major, minor uint64
	data               string
}

// readCpio is as strict as the kernel.
func readCpio(b []byte) (map[string]entry, error) {
	found := map[string]entry{}
	at := 0
	take := func(n int) (string, error) {
		if at+n > len(b) {
			return "", io.ErrUnexpectedEOF
		}
		at += n
		return string(b[at-n : at]), nil
	}
	for {
		at = (at + 3) &^ 3
		head, err := take(110)
		if err != nil {
			return nil, err
		}
		if head[:6] != "070701" {
			return nil, errors.New("bad magic: " + head[:6])
		}
		var f [13]uint64
		for i := range f {
			if f[i], err = strconv.ParseUint(head[6+8*i:14+8*i], 16, 32); err != nil {
				return nil, err
			}
		}
		name, err := take(int(f[11]))
		if err != nil {
			return nil, err
		}
		at = (at + 3) &^ 3
		data, err := take(int(f[6]))
		if err != nil {
			return nil, err
		}
		name, ok := strings.CutSuffix(name, "\x00")
		if !ok {
			return nil, errors.New("a name without its end")
		}
		if name == "TRAILER!!!" {
			return found, nil
		}
		found[name] = entry{f[1], f[9], f[10], data}
	}
}

func TestCpio(t *testing.T) {
	var b bytes.Buffer
	c := &cpio{w: &b}
	c.dir("dev")
	c.char("dev/console", 0o600, 5, 1)
	for i, name := range []string{"a", "ab", "abc", "abcd"} { // every alignment
		c.file(name, 0o755, []byte("12345"[:i+1]))
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%512 != 0 {
		t.Errorf("%d bytes: what is put behind it would not be aligned", b.Len())
	}
	got, err := readCpio(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]entry{
		"dev": {0o040755, 0, 0, ""}, "dev/console": {0o020600, 5, 1, ""},
		"a": {0o100755, 0, 0, "1"}, "ab": {0o100755, 0, 0, "12"}, "abc": {0o100755, 0, 0, "123"}, "abcd": {0o100755, 0, 0, "1234"},
	} {
		if got[name] != want {
			t.Errorf("%s: got %+v, want %+v", name, got[name], want)
		}
	}
	if len(got) != 6 {
		t.Errorf("%d entries", len(got))
	}
	full := &cpio{w: failing{}}
	full.dir("x")
	if full.close() == nil {
		t.Error("the writer's error got lost")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }
