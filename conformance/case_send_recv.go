// SPDX-License-Identifier: Apache-2.0

package conformance

var sendRecv = Case{
	Name: "send-recv", Guarantee: "G1", Modes: allModes,
	Doc: "send and recv of 1 B to 1 MiB, both ways",
	Run: func(e *Env) {
		c, s := e.settled()
		for _, n := range []int{1, 100, 4096, 65536, 1 << 20} {
			e.transfer(c, s, n, 64<<10)
			e.transfer(s, c, n, 64<<10)
		}
	},
}
