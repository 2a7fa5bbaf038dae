// SPDX-License-Identifier: Apache-2.0

package conformance

import "strings"

// limit is a known difference from plain TCP.
type limit struct {
	Case   string
	Modes  Mode
	Lines  string // what differs: the lines that begin so, | is or; any other difference is a failure
	Reason string // why, and where it is written down
}

// limits is the whole list: keep it short, and the entries true. A case that is
// here and does not differ is reported as what it is, and its entry can go.
var limits = []limit{
	// The kernel's sockmap, whatever shunt does.
	{"fionread-new", nonBlocking, "FIONREAD", fionread},
	{"fionread-mixed", nonBlocking, "FIONREAD", fionread},
	{"fionread-full", nonBlocking, "FIONREAD", fionread},
	{"fionread-joined", nonBlocking, "FIONREAD", fionread}, // kernels before 929e30f93125
	{"oob", nonBlocking, "server", urgentData},
	{"oob-inline", nonBlocking, "server", urgentData},
	{"trunc", nonBlocking, "the buffer|server", sockmapReads + "MSG_TRUNC copies what it should throw away"},
	{"peek-offset", nonBlocking, "server peeks", sockmapReads + "SO_PEEK_OFF is not looked at"},
	{"efault-send", nonBlocking, "client writes from nowhere", sockmapReads + "send from a bad address returns 0 and sends nothing"},
	{"tcp-info-bytes", Level, "bytes_received", sockmapReads + "TCP_INFO counts what the stack carried"},

	// shunt's own, in docs/accel.md, "Known limits".
	{"splice-after-recv", nonBlocking, "server|client", "reset, for redirected bytes wait: docs/accel.md, splice after recv"},
	{"turned-blocking", Level, "server reads", "noticed at the next message: docs/accel.md, a socket turned to blocking mode"},
	{"accepted-blocking", Level, "server reads", "noticed at the next message: docs/accel.md, the first read of an accepted blocking socket"},
	{"edge-short-read-full", Edge, "server reads", "docs/accel.md, edge-triggered readers that take a short read for drained"},
	{"close-unread-after-shutdown", nonBlocking, "client", "its FIN is out: docs/accel.md, shutdown(WR), then close"},
}

const (
	fionread     = "this kernel miscounts FIONREAD: docs/accel.md and decision 006"
	urgentData   = "urgent data arrives as ordinary bytes: docs/accel.md, MSG_OOB"
	sockmapReads = "the kernel's sockmap (docs/conformance.md): "
)

func limitOf(name string, m Mode) (limit, bool) {
	for _, l := range limits {
		if l.Case == name && l.Modes&m != 0 {
			return l, true
		}
	}
	return limit{}, false
}

// covers says whether all that differs is what the limit names.
func (l limit) covers(plain, got Observation) bool {
	if len(plain) != len(got) {
		return false
	}
	for i := range plain {
		if plain[i] != got[i] && !l.names(plain[i]) {
			return false
		}
	}
	return true
}

func (l limit) names(line string) bool {
	for prefix := range strings.SplitSeq(l.Lines, "|") {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}
