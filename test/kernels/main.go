// SPDX-License-Identifier: Apache-2.0

// Command kernels runs test suites on other kernels: it gets Debian's cloud
// kernels, boots each in QEMU with an initrd of one test binary, and makes a
// table of the outcomes. Run it from the top of the source tree:
//
//	go run ./test/kernels [-suites refusal,guarantees] [-out docs/kernels.md] [SERIES…]
//
// It needs qemu-system-x86, busybox-static, kmod and xz-utils (scripts/deps.sh
// kernels), no root, and exits with 1 if anything failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sideBySide  = 2  // guests
	detailLines = 60 // of a failure, on the terminal
)

var defaultSeries = []string{"5.10", "6.1", "6.12", newest}

type options struct {
	suites string
	out    string
	cache  string
	logs   string
	slow   int
	within time.Duration
	series []string
}

func main() {
	var o options
	flag.StringVar(&o.suites, "suites", "", "only these, by name, with commas")
	flag.StringVar(&o.out, "out", "", "write the report to this file")
	flag.StringVar(&o.cache, "cache", "", "where downloads are kept (default: shunt-kernels in the user's cache directory)")
	flag.StringVar(&o.logs, "logs", "bin/kernels", "where the guests' logs are kept")
	flag.DurationVar(&o.within, "within", time.Hour, "end all guests, and fail, when this is over")
	flag.IntVar(&o.slow, "slow", 1, "multiply the time that a suite may take, for busy machines")
	flag.Parse()
	if o.slow < 1 || o.slow > 10 {
		fmt.Fprintln(os.Stderr, "kernels: -slow: use 1 to 10")
		os.Exit(2)
	}
	if o.series = flag.Args(); len(o.series) == 0 {
		o.series = defaultSeries
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, o.within)
	ok, err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// choose gives the suites of these names; the first is always one of them.
func choose(names string) ([]suite, error) {
	if names == "" {
		return suites, nil
	}
	chosen := suites[:1:1]
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(suites, func(s suite) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no suite %q", name)
		}
		if i > 0 {
			chosen = append(chosen, suites[i])
		}
	}
	return chosen, nil
}

func run(ctx context.Context, o options) (ok bool, err error) {
	chosen, err := choose(o.suites)
	if err != nil {
		return false, err
	}
	chosen = slices.Clone(chosen)
	for i := range chosen {
		chosen[i].limit *= time.Duration(o.slow)
	}
	for _, tool := range []string{qemu, busybox, "depmod", "xz", "dpkg-deb", "apt-get"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false, fmt.Errorf("%w; on Debian, scripts/deps.sh kernels installs what is needed", err)
		}
	}
	if o.cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return false, fmt.Errorf("no place for downloads, give one with -cache: %w", err)
		}
		o.cache = filepath.Join(user, "shunt-kernels")
	}
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return false, fmt.Errorf("find the cache: %w", err)
	}
	if err := os.MkdirAll(o.logs, 0o755); err != nil {
		return false, fmt.Errorf("make a place for logs: %w", err)
	}
	built, err := os.MkdirTemp("", "shunt-kernels-")
	if err != nil {
		return false, fmt.Errorf("make a place for test binaries: %w", err)
	}
	defer os.RemoveAll(built) //nolint:errcheck // temporary

	a := apt{dir: filepath.Join(o.cache, "apt")}
	index, err := a.update(ctx)
	if err != nil {
		return false, err
	}
	var kernels []kernel
	for _, s := range o.series {
		p, series, err := newestOf(index, s)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(kernels, func(k kernel) bool { return k.series == series }) {
			continue
		}
		k, err := a.prepare(ctx, o.cache, series, p)
		if err != nil {
			return false, err
		}
		kernels = append(kernels, k)
	}
	if err := build(ctx, built, chosen); err != nil {
		return false, err
	}

	reports := make([]report, len(kernels))
	free := make(chan struct{}, sideBySide)
	var all sync.WaitGroup
	for i, k := range kernels {
		all.Go(func() { reports[i] = matrix(ctx, k, chosen, built, o.logs, free) })
	}
	all.Wait()

	ok = true
	for _, r := range reports {
		fmt.Printf("%s (%s, %s)\n", r.kernel.series, r.kernel.release, r.kernel.pkg.version)
		for _, s := range r.results {
			fmt.Printf("  %-4s  %-14s %5.0f s  %s\n", s.verdict, s.suite, s.seconds, s.reason)
		}
		ok = ok && !r.failed()
	}
	if o.out != "" {
		text := markdown(reports, chosen, again(o))
		if err := os.WriteFile(o.out, []byte(text), 0o644); err != nil {
			return false, fmt.Errorf("write the report: %w", err)
		}
	}
	return ok, ctx.Err()
}

// again is the command that makes the same report.
func again(o options) string {
	words := []string{"go run ./test/kernels"}
	if o.suites != "" {
		words = append(words, "-suites "+o.suites)
	}
	return strings.Join(append(append(words, "-out "+o.out), o.series...), " ")
}

// matrix runs the suites on one kernel: first the first, which knows whether accel
// can run there, then the others.
func matrix(ctx context.Context, k kernel, chosen []suite, built, logs string, free chan struct{}) report {
	r := report{kernel: k, results: make([]result, len(chosen))}
	one := func(i int) {
		res, decided := r.refused(chosen[i])
		if !decided {
			free <- struct{}{}
			res = chosen[i].run(ctx, k, built, logs)
			<-free
		}
		if i == 0 {
			d, err := parseDoctor(res.doctor)
			if err != nil && res.verdict != fail {
				res = res.fail(err.Error())
			} else if err == nil {
				r.doctor = d
			}
		}
		fmt.Fprintf(os.Stderr, "kernels: %s %s %s (%.0f s): %s\n", k.series, res.suite, res.verdict, res.seconds, res.reason)
		if res.detail != "" {
			lines := strings.Split(strings.TrimSpace(res.detail), "\n")
			if len(lines) > detailLines {
				lines = append(lines[:detailLines], "… the rest is in "+logs)
			}
			fmt.Fprintln(os.Stderr, "    "+strings.Join(lines, "\n    "))
		}
		r.results[i] = res
	}
	one(0)
	var others sync.WaitGroup
	for i := range chosen[1:] {
		others.Go(func() { one(i + 1) })
	}
	others.Wait()
	return r
}

// refused tells the result of a suite that a kernel cannot be asked to run.
func (r report) refused(s suite) (result, bool) {
	if s.accelFrom == "" || r.doctor == nil || r.doctor.Fail == 0 {
		return result{}, false
	}
	why := "accel is refused: " + strings.Join(r.doctor.refusals(), "; ")
	if compareVersions(r.kernel.series, s.accelFrom) >= 0 {
		return result{suite: s.name}.fail(why), true
	}
	return result{suite: s.name, verdict: skip, reason: why}, true
}
