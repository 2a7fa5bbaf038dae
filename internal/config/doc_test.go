// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The page names every key, and what it shows is what shunt says.
func TestPage(t *testing.T) {
	data, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	for _, place := range places {
		for _, key := range place.keys {
			if place.at == "accel" || place.at == "observe" {
				key = place.at + "." + key
			}
			if key != "accel" && key != "observe" && !strings.Contains(page, "| `"+key+"` |") {
				t.Errorf("no row for %s", key)
			}
		}
	}
	for _, key := range append(laterRoot, "observe."+laterObserve[0], "observe."+laterObserve[1]) {
		if !strings.Contains(page, "`"+key+"`") {
			t.Errorf("no word on %s", key)
		}
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(page, -1)
	if len(blocks) == 0 {
		t.Error("no example")
	}
	for _, b := range blocks {
		if _, err := Parse("configuration.md", []byte(b[1])); err != nil {
			t.Errorf("%s\n%v", b[1], err)
		}
	}
	_, err = Parse("shunt.yaml", []byte(head+"accel:\n  slect:\n    - unit: redis-server.service\n  exclude:\n  - addresses: [10.1.2.3/8]\n"))
	if err == nil || !strings.Contains(page, "\n$ shunt check shunt.yaml\n"+err.Error()+"\n") {
		t.Errorf("the page does not show\n%v", err)
	}
}
