// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strings"
)

// Mode is how the two ends of a case use their sockets.
type Mode uint8

// The modes; a case names those in which it says something.
const (
	Blocking Mode = 1 << iota // blocking sockets
	Level                     // non-blocking, poll
	Edge                      // non-blocking, edge-triggered epoll
)

const (
	nonBlocking = Level | Edge
	allModes    = Blocking | Level | Edge
)

func (m Mode) String() string {
	switch m {
	case Blocking:
		return "blocking"
	case Level:
		return "level"
	case Edge:
		return "edge"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

func (m Mode) each() []Mode {
	var list []Mode
	for _, one := range []Mode{Blocking, Level, Edge} {
		if m&one != 0 {
			list = append(list, one)
		}
	}
	return list
}

// Case is one question to the sockets.
type Case struct {
	Name      string
	Guarantee string // G1…G7, G9, as docs/accel.md numbers them
	Doc       string // one line
	Modes     Mode
	// Control: the modes in which the unguarded control must answer otherwise
	// than plain TCP, or the case could not fail.
	Control Mode
	Run     func(*Env)
}

// Observation is what the program of a case saw, in order.
type Observation []string

func (o Observation) equal(p Observation) bool {
	if len(o) != len(p) {
		return false
	}
	for i := range o {
		if o[i] != p[i] {
			return false
		}
	}
	return true
}

// difference is the first line in which two observations differ.
func (o Observation) difference(got Observation) string {
	line := func(o Observation, i int) string {
		if i < len(o) {
			return o[i]
		}
		return "nothing more"
	}
	for i := range max(len(o), len(got)) {
		if want, is := line(o, i), line(got, i); want != is {
			return fmt.Sprintf("plain TCP: %q, here: %q", want, is)
		}
	}
	return ""
}

func (o Observation) String() string { return strings.Join(o, "; ") }

// hang is the last line of an observation whose case did not end.
const hang = "hang: killed"

// broken starts the line of a case that could not be carried out.
const broken = "broken: "
