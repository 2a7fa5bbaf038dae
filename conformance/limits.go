// SPDX-License-Identifier: Apache-2.0

package conformance

// limit is a known difference from plain TCP.
type limit struct {
	Case   string
	Modes  Mode
	Reason string // why, and where it is written down
}

// limits is the whole list: keep it short, and the entries true. A case that is
// here and does not differ is reported as what it is, and its entry can go.
var limits = []limit{}

func limitOf(name string, m Mode) (limit, bool) {
	for _, l := range limits {
		if l.Case == name && l.Modes&m != 0 {
			return l, true
		}
	}
	return limit{}, false
}
