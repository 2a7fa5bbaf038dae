// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	keyring      = "/usr/share/keyrings/debian-archive-keyring.gpg"
	fetchTimeout = 5 * time.Minute // of one apt command
	newest       = "newest"        // the name of whatever series is the last one
)

// Where Debian keeps the kernels of several series at once.
var (
	securitySuites = []string{"bullseye-security", "bookworm-security"} // 5.10; 6.1 and 6.12
	mainSuites     = []string{"trixie-backports"}                       // what came later
)

// pkg is what a package index says about one package.
type pkg struct{ name, version, depends string }

// kernelName matches the kernels made for virtual machines. Debian's version
// numbers of the ABI ("6.1.0-56") begin with the series too.
var kernelName = regexp.MustCompile(`^linux-image-([0-9]+\.[0-9]+)\.[0-9].*-cloud-amd64$`)

// parseIndex reads the format of deb-src-control(5): paragraphs of fields.
func parseIndex(r io.Reader) ([]pkg, error) {
	var all []pkg
	var p pkg
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // some lines are long
	end := func() {
		if p.name != "" && p.version != "" {
			all = append(all, p)
		}
		p = pkg{}
	}
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			end()
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch field { // a line that continues a field begins with a space
		case "Package":
			p.name = value
		case "Version":
			p.version = value
		case "Depends":
			p.depends = value
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the package index: %w", err)
	}
	end()
	return all, nil
}

// newestOf finds the newest kernel of a series ("6.12"), or of all.
func newestOf(all []pkg, series string) (pkg, string, error) {
	var best pkg
	var bestSeries string
	there := map[string]bool{}
	for _, p := range all {
		m := kernelName.FindStringSubmatch(p.name)
		if m == nil {
			continue
		}
		there[m[1]] = true
		if (series == newest || series == m[1]) && (best.name == "" || compareVersions(p.version, best.version) > 0) {
			best, bestSeries = p, m[1]
		}
	}
	if best.name == "" {
		names := make([]string, 0, len(there))
		for s := range there {
			names = append(names, s)
		}
		slices.SortFunc(names, compareVersions)
		return pkg{}, "", fmt.Errorf("no Debian cloud kernel of series %s to be had; there are %s", series, strings.Join(names, ", "))
	}
	return best, bestSeries, nil
}

// parts are the packages that make up a kernel: since 6.19 an image is empty
// and depends on others that have the kernel, its modules, and the lists of them.
func (p pkg) parts() []string {
	parts := []string{p.name + "=" + p.version}
	release := strings.TrimPrefix(p.name, "linux-image-")
	for _, d := range strings.FieldsFunc(p.depends, func(r rune) bool { return r == ',' || r == '|' }) {
		name, _, _ := strings.Cut(strings.TrimSpace(d), " ")
		if name != p.name && strings.HasPrefix(name, "linux-") && strings.HasSuffix(name, "-"+release) {
			parts = append(parts, name+"="+p.version)
		}
	}
	return parts
}

// apt has package lists and a cache of its own below dir: the machine's are
// neither used nor changed.
type apt struct{ dir string }

func (a apt) run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	options := []string{
		"-qq",
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"), "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State::Lists=" + filepath.Join(a.dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Acquire::Languages=none", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30",
		"-o", "APT::Update::Error-Mode=any", // a list that could not be had is an error
		"-o", "DPkg::Lock::Timeout=120",
	}
	if os.Geteuid() == 0 { // apt's own user cannot write to a user's cache; signatures are checked all the same
		options = append(options, "-o", "APT::Sandbox::User=root")
	}
	return command(ctx, dir, name, append(options, args...)...)
}

// command returns what a command prints, and in the error what it complained about.
func command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "CGO_ENABLED=0") // test binaries must be static
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// mirrors finds the two archives in what `apt-get indextargets` prints of the
// machine's own sources, lines of "URI RELEASE".
func mirrors(targets string) (main, security string, err error) {
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		uri := strings.TrimRight(f[0], "/")
		switch {
		case strings.HasSuffix(f[1], "-security"):
			security = uri
		case strings.HasSuffix(uri, "/debian") && main == "":
			main = uri
		}
	}
	if main == "" || security == "" {
		return "", "", errors.New("this machine's apt sources name no Debian mirror with a -security suite: Debian's kernels cannot be had")
	}
	return main, security, nil
}

// update brings the lists up to date and returns what they have.
func (a apt) update(ctx context.Context) ([]pkg, error) {
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("find Debian's keys (package debian-archive-keyring): %w", err)
	}
	targets, err := command(ctx, "", "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages")
	if err != nil {
		return nil, fmt.Errorf("ask apt for its sources: %w", err)
	}
	mainURI, securityURI, err := mirrors(string(targets))
	if err != nil {
		return nil, err
	}
	var list strings.Builder
	for uri, suites := range map[string][]string{mainURI: mainSuites, securityURI: securitySuites} {
		for _, s := range suites {
			fmt.Fprintf(&list, "deb [arch=amd64 signed-by=%s] %s %s main\n", keyring, uri, s)
		}
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make the cache of apt: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(list.String()), 0o644); err != nil {
		return nil, fmt.Errorf("write the sources: %w", err)
	}
	if _, err := a.run(ctx, "", "apt-get", "update"); err != nil {
		return nil, fmt.Errorf("the Debian mirror %s does not answer as it should: %w", mainURI, err)
	}
	index, err := a.run(ctx, "", "apt-cache", "dumpavail")
	if err != nil {
		return nil, fmt.Errorf("read the package lists: %w", err)
	}
	return parseIndex(bytes.NewReader(index))
}

// kernel is one that can be booted.
type kernel struct {
	series  string
	pkg     pkg
	release string   // uname -r
	vmlinuz string   // file
	modules []string // files, in the order to load them
}

// prepare downloads and unpacks a kernel, unless an earlier run did.
func (a apt) prepare(ctx context.Context, cache, series string, p pkg) (kernel, error) {
	k := kernel{series: series, pkg: p, release: strings.TrimPrefix(p.name, "linux-image-")}
	dir := filepath.Join(cache, "kernels", strings.ReplaceAll(p.name+"_"+p.version, "/", "_"))
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := a.unpack(ctx, cache, dir, k.release, p); err != nil {
			return k, fmt.Errorf("get %s %s: %w", p.name, p.version, err)
		}
	}
	k.vmlinuz = filepath.Join(dir, "vmlinuz")
	var err error
	if k.modules, err = filepath.Glob(filepath.Join(dir, "modules", "*.ko")); err != nil {
		return k, fmt.Errorf("list the modules: %w", err)
	}
	slices.Sort(k.modules)
	return k, nil
}

// unpack makes dir whole or not at all.
func (a apt) unpack(ctx context.Context, cache, dir, release string, p pkg) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(cache, "unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // a leftover does no harm
	fmt.Fprintf(os.Stderr, "kernels: downloading %s %s\n", p.name, p.version)
	if _, err := a.run(ctx, tmp, "apt-get", append([]string{"download"}, p.parts()...)...); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil {
		return err
	}
	root := filepath.Join(tmp, "root")
	for _, deb := range debs {
		if _, err := command(ctx, "", "dpkg-deb", "-x", deb, root); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	made := filepath.Join(tmp, "made")
	if err := os.MkdirAll(filepath.Join(made, "modules"), 0o755); err != nil {
		return err
	}
	image, base, err := layout(root, release)
	if err != nil {
		return err
	}
	if err := os.Rename(image, filepath.Join(made, "vmlinuz")); err != nil {
		return err
	}
	if err := takeModules(ctx, base, release, filepath.Join(made, "modules")); err != nil {
		return err
	}
	if err := os.Rename(made, dir); err != nil && !errors.Is(err, os.ErrExist) { // another run may have been faster
		return err
	}
	return nil
}

// layout finds the kernel's image and the directory that has lib/modules: both
// have moved over the years.
func layout(root, release string) (image, base string, err error) {
	for _, b := range []string{root, filepath.Join(root, "usr")} {
		if _, err := os.Stat(filepath.Join(b, "lib/modules", release)); err == nil {
			base = b
		}
	}
	if base == "" {
		return "", "", fmt.Errorf("no lib/modules/%s in the packages", release)
	}
	for _, i := range []string{filepath.Join(root, "boot/vmlinuz-"+release), filepath.Join(base, "lib/modules", release, "vmlinuz")} {
		if _, err := os.Stat(i); err == nil {
			return i, base, nil
		}
	}
	return "", "", errors.New("no vmlinuz in the packages")
}
