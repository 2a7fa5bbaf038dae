// SPDX-License-Identifier: Apache-2.0

package cli

import "testing"

func TestQueueSize(t *testing.T) {
	for text, want := range map[string]struct {
		bytes queueSize
		text  string
	}{
		"1":          {1 << 10, "1KiB"},
		"64":         {64 << 10, "64KiB"},
		"65536":      {64 << 20, "64MiB"},
		"1048576":    {1 << 30, "1GiB"},
		"1KiB":       {1 << 10, "1KiB"},
		"1025KiB":    {1025 << 10, "1025KiB"},
		"4MiB":       {4 << 20, "4MiB"},
		"1GiB":       {1 << 30, "1GiB"},
		"1024MiB":    {1 << 30, "1GiB"},
		"1048576KiB": {1 << 30, "1GiB"},
	} {
		var s queueSize
		if err := s.Set(text); err != nil || s != want.bytes || s.String() != want.text {
			t.Errorf("%s: %d bytes, %s, %v; want %d, %s", text, s, s.String(), err, want.bytes, want.text)
		}
		var again queueSize
		if err := again.Set(s.String()); err != nil || again != s {
			t.Errorf("%s reads back as %d, %v", s.String(), again, err)
		}
	}
	for _, text := range []string{
		"", "0", "-1", "+1", "1048577", "2GiB", "1025MiB", "0MiB", "4M", "4mib", "4 MiB", "1.5MiB", "MiB", "KiB", "4MiBKiB",
		"4294967296", "18446744073709551617", "99999999999GiB", "512B", "0x10", "1e3",
	} {
		s := queueSize(7)
		if err := s.Set(text); err == nil || s != 7 {
			t.Errorf("%q was taken for %d", text, s)
		}
	}
}
