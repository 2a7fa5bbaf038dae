// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCompareVersions(t *testing.T) {
	sorted := []string{ // as dpkg --compare-versions says
		"5.10.262-1", "6.1.0-0.deb11.52", "6.1.192-1~deb11u1", "6.1.192-1", "6.1.192-2", "6.1.192-10",
		"6.12.117-1~deb12u1", "6.12.117-1", "6.12.117a-1", "6.12.117+1-1", "7.3.4-1~bpo13+1", "7.3.4-1", "7.10.1-1", "1:1.0",
	}
	for i, a := range sorted {
		for j, b := range sorted {
			got := compareVersions(a, b)
			if got < 0 != (i < j) || got > 0 != (i > j) {
				t.Errorf("compareVersions(%s, %s) = %d", a, b, got)
			}
		}
	}
	if compareVersions("1.02-0", "1.2") != 0 {
		t.Error("1.02-0 and 1.2 are the same version")
	}
}

const index = `Package: linux-image-6.12.107+deb12-cloud-amd64
Version: 6.12.107-1~deb12u1
Depends: kmod, linux-base (>= 4.3~)

Package: linux-image-6.12.99+deb12-cloud-amd64
Version: 6.12.99-1~deb12u1
Description: older
 Version: 9 (this line continues the description)

Package: linux-image-6.12.200+deb12-cloud-amd64-unsigned
Version: 6.12.200-1~deb12u1

Package: linux-image-6.12-cloud-amd64
Version: 6.12.201-1~deb12u1

Package: linux-image-6.1.0-56-cloud-amd64
Version: 6.1.192-2

Package: linux-image-6.1.0-0.deb11.52-cloud-amd64
Version: 6.1.192-1~deb11u1


Package: linux-image-7.3.4+deb13-cloud-amd64
Version: 7.3.4-1~bpo13+1
Depends: dracut | linux-initramfs-tool, linux-base-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), linux-modules-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1)`

func TestNewestOf(t *testing.T) {
	all, err := parseIndex(strings.NewReader(index))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ series, name, found string }{
		{"6.12", "linux-image-6.12.107+deb12-cloud-amd64", "6.12"},
		{"6.1", "linux-image-6.1.0-56-cloud-amd64", "6.1"},
		{newest, "linux-image-7.3.4+deb13-cloud-amd64", "7.3"},
	} {
		p, found, err := newestOf(all, c.series)
		if err != nil || p.name != c.name || found != c.found {
			t.Errorf("%s: got %s of series %s, %v", c.series, p.name, found, err)
		}
	}
	_, _, err = newestOf(all, "5.10")
	if err == nil || !strings.Contains(err.Error(), "there are 6.1, 6.12, 7.3") {
		t.Errorf("5.10: %v", err)
	}
}

func TestParts(t *testing.T) {
	all, err := parseIndex(strings.NewReader(index))
	if err != nil {
		t.Fatal(err)
	}
	one, _, err := newestOf(all, "6.12")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := one.parts(), []string{"linux-image-6.12.107+deb12-cloud-amd64=6.12.107-1~deb12u1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	split, _, err := newestOf(all, newest)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"linux-image-7.3.4+deb13-cloud-amd64=7.3.4-1~bpo13+1", "linux-base-7.3.4+deb13-cloud-amd64=7.3.4-1~bpo13+1",
		"linux-modules-7.3.4+deb13-cloud-amd64=7.3.4-1~bpo13+1",
	}
	if got := split.parts(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMirrors(t *testing.T) {
	main, security, err := mirrors("http://other.example/apt stable\nhttp://deb.example/debian/ bookworm\n" +
		"http://deb.example/debian/ bookworm-updates\nhttp://deb.example/debian-security/ bookworm-security\n")
	if main != "http://deb.example/debian" || security != "http://deb.example/debian-security" || err != nil {
		t.Errorf("got %s, %s, %v", main, security, err)
	}
	if _, _, err := mirrors("http://other.example/apt stable\n"); err == nil {
		t.Error("no error where no mirror is named")
	}
}

func TestLayout(t *testing.T) {
	for _, c := range []struct{ image, modules string }{
		{"boot/vmlinuz-1.2", "lib/modules/1.2"},
		{"boot/vmlinuz-1.2", "usr/lib/modules/1.2"},
		{"usr/lib/modules/1.2/vmlinuz", "usr/lib/modules/1.2"},
	} {
		root := t.TempDir()
		if _, _, err := layout(root, "1.2"); err == nil {
			t.Error("no error from an empty directory")
		}
		for _, d := range []string{filepath.Dir(c.image), c.modules} {
			if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := layout(root, "1.2"); err == nil {
			t.Error("no error without an image")
		}
		if err := os.WriteFile(filepath.Join(root, c.image), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		image, base, err := layout(root, "1.2")
		if err != nil || image != filepath.Join(root, c.image) || filepath.Join(base, "lib/modules/1.2") != filepath.Join(root, c.modules) {
			t.Errorf("%+v: got %s, %s, %v", c, image, base, err)
		}
	}
}
