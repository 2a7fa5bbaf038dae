// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestConformance: the binary is its own peer. What the suite finds is the affair
// of ./conformance.
func TestConformance(t *testing.T) {
	require(t)
	p := command(t, shunt, "doctor", "--conformance", "--cases", "peek-messages", "-o", "json")
	var report struct {
		Rows []struct{ Case, Mode, Place, Verdict string }
	}
	if err := json.Unmarshal([]byte(p.succeed(t)), &report); err != nil {
		t.Fatal(err)
	}
	checkComplaint(t, p, "")
	places := map[string]int{}
	for _, row := range report.Rows {
		if row.Case != "peek-messages" || row.Verdict == "" {
			t.Errorf("row %+v", row)
		}
		places[row.Place]++
	}
	if len(report.Rows) != 9 || places["loopback"] != 3 || places["veth"] != 3 || places["control"] != 3 {
		t.Errorf("want three modes in three places: %+v", report.Rows)
	}
	table := command(t, shunt, "doctor", "--conformance", "--cases", "peek-messages").succeed(t)
	for _, want := range []string{"peek-messages", "PASS", "LEFT", "The unguarded control"} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in the table:\n%s", want, table)
		}
	}
	none := command(t, shunt, "doctor", "--conformance", "--cases", "no such case")
	if status := none.run(t); status.ExitStatus() != 1 {
		t.Errorf("no case, but %s", describe(status))
	}
	checkComplaint(t, none, "no case")
}
