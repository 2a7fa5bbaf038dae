// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"strconv"
	"strings"
)

// queueSize is the value of --max-queue in bytes. A plain number is KiB, as it
// always was.
type queueSize uint32

var errQueueSize = errors.New("use 1KiB to 1GiB: a whole number of KiB, MiB or GiB, without a unit KiB")

// Set reads a size from the command line.
func (s *queueSize) Set(text string) error {
	number, shift := text, 10
	for unit, bits := range map[string]int{"KiB": 10, "MiB": 20, "GiB": 30} {
		if n, ok := strings.CutSuffix(text, unit); ok {
			number, shift = n, bits
		}
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || n == 0 || n > 1<<30>>shift {
		return errQueueSize
	}
	*s = queueSize(n << shift)
	return nil
}

// String writes the size in the largest unit that it is a whole number of.
func (s *queueSize) String() string {
	n, unit := uint64(*s)>>10, "KiB"
	for _, u := range []string{"MiB", "GiB"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return strconv.FormatUint(n, 10) + unit
}

// Type is what --help calls the value.
func (s *queueSize) Type() string { return "SIZE" }
