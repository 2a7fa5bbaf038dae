// SPDX-License-Identifier: Apache-2.0

// Package guarantees holds the integration tests of what shunt promises about
// every connection it accelerates (the guarantees G1 to G6 and G10 of the accel
// plane), one file a guarantee.
//
// A test drives agents: processes of this test binary, each in the cgroup and
// network namespace it was started in, that make socket calls one by one and
// check every byte they receive. The same calls run in three worlds: plain TCP,
// accelerated, and the unguarded control of the bench package. Every accelerated
// test asserts that its connections were joined and bytes redirected, and where
// it can, the control fails the same check: so the test is known to be able to.
package guarantees
