// SPDX-License-Identifier: Apache-2.0

package conformance

var oobInline = Case{
	Name: "oob-inline", Guarantee: "G5", Modes: allModes, Control: allModes,
	Doc: "MSG_OOB with SO_OOBINLINE: POLLPRI and the mark",
	Run: func(e *Env) { urgent(e, true) },
}
