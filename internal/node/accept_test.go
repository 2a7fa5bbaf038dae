// SPDX-License-Identifier: Apache-2.0

package node

import (
	"reflect"
	"testing"

	"github.com/shuntnet/shunt/internal/accel"
)

func TestGuarantee(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  accel.Options
	}{
		{nil, accel.Options{}},
		{[]string{"G4", "g4", "blocking", "Blocking"}, accel.Options{AcceptG4: true}},
		{[]string{"G5", "g5", "reader"}, accel.Options{AcceptG5: true}},
		{[]string{"G6", "g6", "reset"}, accel.Options{AcceptG6: true}},
	} {
		for _, name := range c.names {
			if got, err := acceptance(SessionOptions{Accept: []string{name}}); !reflect.DeepEqual(got, c.want) || err != nil {
				t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
			}
		}
	}
	if got, err := acceptance(SessionOptions{Accept: []string{"blocking", "G5", "reset"}}); !got.AcceptG4 || !got.AcceptG5 || !got.AcceptG6 || err != nil {
		t.Errorf("all three: %+v, %v", got, err)
	}
	for _, name := range []string{"", "G1", "G45", "block", "4", "readers"} {
		if got, err := Guarantee(name); err == nil {
			t.Errorf("%q was taken for %s", name, got)
		}
	}
}
