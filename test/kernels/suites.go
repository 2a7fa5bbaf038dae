// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// suite is a test binary to run in a guest.
type suite struct {
	name string
	pkg  string // what `go test -c` builds
	// A suite that needs an accelerated kernel is skipped where doctor says that
	// accel cannot run, but fails there if the series is this one or newer.
	accelFrom string
	limit     time.Duration // far above what it takes, in an emulated guest
	env       string        // NAME=VALUE…, for the test binary
	args      []string      // for the test binary
}

// suites: add one here and it is run. The first also asks doctor, whose answer
// decides about those that need accel.
var suites = []suite{
	{name: "refusal", pkg: "./test/refusal", limit: 3 * time.Minute},
	{name: "kernel", pkg: "./internal/kernel", limit: 3 * time.Minute},
	{name: "accel", pkg: "./internal/accel", accelFrom: "6.6", limit: 3 * time.Minute},
	// In two guests, for they take longest, and most of it for the many ways to end.
	{name: "guarantees", pkg: "./test/guarantees", accelFrom: "6.6", limit: 9 * time.Minute,
		// Debian's cloud kernels have no tcp_diag, with which user space resets a splice reader.
		// The loop where G4 is given up may see what was given up, and does where the FIN's acknowledgement is slow.
		args: []string{"-test.skip=^TestEnd|^TestSpliceWithBytesWaitingIsReset$|^TestHalfCloseLoop$/^blocking_with_G4"}, env: "SHUNT_HALFCLOSE=200"}, // connections, of 10,000
	{name: "guarantees-end", pkg: "./test/guarantees", accelFrom: "6.6", limit: 9 * time.Minute,
		args: []string{"-test.run=^TestEnd"}},
}

// patience multiplies the bounds of waits inside a guest, see the tests.
const patience = "4"

// build makes bin/shunt and the test binaries in dir, static, by suite name.
func build(ctx context.Context, dir string, run []suite) error {
	if _, err := command(ctx, "", "go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, "shunt"), "./cmd/shunt"); err != nil {
		return fmt.Errorf("build shunt: %w", err)
	}
	for _, s := range run {
		if _, err := command(ctx, "", "go", "test", "-c", "-ldflags", "-s -w", "-o", filepath.Join(dir, s.name+".test"), s.pkg); err != nil {
			return fmt.Errorf("build suite %s: %w", s.name, err)
		}
	}
	return nil
}

// script is what a guest runs.
func (s suite) script() string {
	var b strings.Builder
	fmt.Fprintf(&b, "export SHUNT_TEST_PATIENCE=%s SHUNT_TEST_BINARY=/bin/shunt SHUNT_TEST_ALONE=1 %s\n", patience, s.env)
	b.WriteString("shunt doctor -o json >out/doctor.json 2>out/doctor.err\n")
	fmt.Fprintf(&b, "exec /suite.test -test.v=test2json -test.timeout=%s", s.limit)
	for _, a := range s.args {
		b.WriteString(" '" + strings.ReplaceAll(a, "'", `'\''`) + "'")
	}
	b.WriteString("\n")
	return b.String()
}

// run boots a guest that runs the suite.
func (s suite) run(ctx context.Context, k kernel, built, out string) result {
	r := result{suite: s.name}
	name := k.series + "-" + s.name
	initrd := filepath.Join(built, name+".initrd")
	defer os.Remove(initrd) //nolint:errcheck // in a temporary directory
	err := writeInitrd(initrd, k, []guestFile{
		{name: "suite.test", mode: 0o755, from: filepath.Join(built, s.name+".test")},
		{name: "bin/shunt", mode: 0o755, from: filepath.Join(built, "shunt")},
		{name: "suite.sh", mode: 0o644, data: []byte(s.script())},
	})
	if err != nil {
		return r.fail(err.Error())
	}
	start := time.Now()
	o, err := boot(ctx, k, initrd, out, name, s.limit)
	r.seconds = time.Since(start).Seconds()
	if err != nil {
		return r.fail(err.Error())
	}
	tests, err := readTests(ctx, o.log)
	if err != nil {
		return r.fail(err.Error())
	}
	r.judge(o, tests)
	r.doctor = o.files["doctor.json"]
	return r
}
