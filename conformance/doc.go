// SPDX-License-Identifier: Apache-2.0

// Package conformance asks whether a program could tell an accelerated socket
// from a plain one. Each case is a short program with both ends of a connection;
// what it sees (return values, errors, bytes, poll events; never timings) is an
// [Observation]. The same case runs on plain TCP, accelerated, accelerated across
// two network namespaces, and under the unguarded control, which redirects
// everything. What plain TCP shows in the same run is what is expected.
//
// A case is one file, case_NAME.go, with one entry in registry.go. Differences
// that are known and documented are in limits.go. Cases run in worker processes,
// which are killed when a case takes too long: a hang is an observation.
package conformance
