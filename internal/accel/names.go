// SPDX-License-Identifier: Apache-2.0

package accel

// Names are all that can appear in the maps of Stats, in a stable order.
type Names struct{ NotJoined, Left, Stack, Faults []string }

// Capacity is the number of sockets that an instance can have joined at once.
func Capacity() (uint32, error) {
	spec, err := loadBpf()
	if err != nil {
		return 0, err
	}
	return spec.Maps[bpfMapShuntSocks].MaxEntries, nil
}

// AllNames lists them.
func AllNames() Names {
	var n Names
	for r := bpfRefusalREFUSE_NONE + 1; r < bpfRefusalREFUSE_MAX; r++ {
		n.NotJoined = append(n.NotJoined, refusalNames[r])
	}
	for l := bpfLeaveLEAVE_NONE + 1; l < bpfLeaveLEAVE_MAX; l++ {
		if l != bpfLeaveLEAVE_CLOSE {
			n.Left = append(n.Left, leaveNames[l])
		}
	}
	for r := bpfRouteROUTE_REDIRECT + 1; r < bpfRouteROUTE_MAX; r++ {
		n.Stack = append(n.Stack, routeNames[r])
	}
	for f := bpfFault(0); f < bpfFaultFAULT_MAX; f++ {
		n.Faults = append(n.Faults, faultNames[f])
	}
	return n
}

// ExplainFault says in words which kernel call a name in Stats.Faults is.
func ExplainFault(place string) string {
	if s, ok := faults[place]; ok {
		return s
	}
	return place
}

var faults = map[string]string{
	"conn-insert":      "note a connection: the table is full, or memory is short",
	"sock-insert":      "put a socket into the map",
	"syn-insert":       "note a SYN: the connection stays on plain TCP",
	"pair-insert":      "note a connecting end: the connection stays on plain TCP",
	"callback-flags":   "switch callbacks of a socket on or off",
	"listener-storage": "remember a listener: its connections stay on plain TCP",
	"guard-event":      "ask for the reset guard of a device",
	"leave":            "take a socket out of the map",
	"reset":            "turn a FIN into the RST that TCP would have sent",
	"exclude":          "exclude the workload of a splice reader",
	"reader":           "remember a workload whose reader was seen in recv",
	"sndbuf":           "shorten the send buffer of a connection that spills",
}
