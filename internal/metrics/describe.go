// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"io"
	"strings"
)

// WriteMarkdown writes docs/metrics.md.
func WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`# Metrics
<!-- Generated: make metrics -->

` + "`shunt metrics`" + ` answers Prometheus on 127.0.0.1:9777, ` + "`shunt agent`" + ` on ` + "`observe.metrics`" + ` of its configuration;
` + "`shunt metrics -o text`" + ` prints once. Dashboard and alerts: [deploy](../deploy).

Names are stable. Counters begin at 0 when an instance is loaded and never go back while it is. A series ends with its
instance: a run, or the agent's. No label holds an address or a port. ` + "`shunt_instance`" + ` of a run is a new name for
each run; where that is too many series, drop the label when scraping.

| name | type | labels | meaning |
|---|---|---|---|
`)
	for _, m := range Describe() {
		labels := make([]string, len(m.Labels))
		for i, l := range m.Labels {
			labels[i] = "`" + l + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, strings.Join(labels, ", "), m.Meaning)
	}
	shown := map[string]bool{}
	for _, l := range Labels() {
		name := strings.Replace(l.Metric, "_bytes_", "_*_", 1)
		name = strings.Replace(name, "_messages_", "_*_", 1)
		if shown[name] { // bytes and messages have the same reasons
			continue
		}
		shown[name] = true
		fmt.Fprintf(&b, "\n## `%s` of `%s`\n| %s | meaning |\n|---|---|\n", l.Name, name, l.Name)
		for _, v := range l.Values {
			fmt.Fprintf(&b, "| `%s` | %s |\n", v.Name, v.Meaning)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
