// SPDX-License-Identifier: Apache-2.0

package conformance

var backPressureSmall = Case{
	Name: "back-pressure-small", Guarantee: "G3", Modes: nonBlocking, Control: nonBlocking,
	Doc: "the same with writes of 256 bytes, each of which costs the kernel more than that",
	Run: func(e *Env) { pressure(e, 256, 24<<20) },
}
