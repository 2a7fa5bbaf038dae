// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"strings"
)

// Guarantees are those that can be given up, by number and by the word for what
// is given up.
var guarantees = []struct{ number, word string }{
	{"G4", "blocking"}, // blocking sockets are joined too
	{"G5", "reader"},   // nobody waits for proof of the reader
	{"G6", "reset"},    // there need be no reset guard
}

// Guarantee returns the number of a guarantee that can be given up: "G4" of "G4",
// "g4" or "blocking".
func Guarantee(name string) (string, error) {
	for _, g := range guarantees {
		if strings.EqualFold(name, g.number) || strings.EqualFold(name, g.word) {
			return g.number, nil
		}
	}
	return "", fmt.Errorf("cannot accept %q: only G4, G5 and G6 can be given up, as numbers or as blocking, reader and reset", name)
}
