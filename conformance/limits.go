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
var limits = []limit{
	// Until detection lands in the kernel half; each is to leave for plain TCP then.
	{"splice-after-recv", nonBlocking, untilDetected + "splice after recv"},
	{"splice-after-recv-idle", nonBlocking, untilDetected + "splice after recv"},
	{"tcp-inq", nonBlocking, untilDetected + "TCP_INQ"},
	{"timestamps", nonBlocking, untilDetected + "receive timestamps"},
	{"zerocopy-receive", nonBlocking, untilDetected + "TCP_ZEROCOPY_RECEIVE"},

	// The kernel's sockmap, whatever shunt does.
	{"fionread-new", nonBlocking, fionread},
	{"fionread-mixed", nonBlocking, fionread},
	{"fionread-full", nonBlocking, fionread},
	{"fionread-joined", nonBlocking, fionread}, // kernels before 929e30f93125
	{"oob", nonBlocking, urgentData},
	{"oob-inline", nonBlocking, urgentData},
	{"trunc", nonBlocking, sockmapReads + "MSG_TRUNC copies what it should throw away"},
	{"peek-offset", nonBlocking, sockmapReads + "SO_PEEK_OFF is not looked at"},
	{"efault-send", nonBlocking, sockmapReads + "send from a bad address returns 0 and sends nothing"},
	{"tcp-info-bytes", Level, sockmapReads + "TCP_INFO counts what the stack carried"},

	// shunt's own, in docs/accel.md, "Known limits".
	{"turned-blocking", Level, "noticed at the next message: docs/accel.md, a socket turned to blocking mode"},
	{"edge-short-read-full", Edge, "docs/accel.md, edge-triggered readers that take a short read for drained"},
	{"close-unread-after-shutdown", nonBlocking, "its FIN is out: docs/accel.md, shutdown(WR), then close"},
}

const (
	untilDetected = "until detection lands: "
	fionread      = "this kernel miscounts FIONREAD: docs/accel.md and decision 006"
	urgentData    = "urgent data arrives as ordinary bytes: docs/accel.md, MSG_OOB"
	sockmapReads  = "the kernel's sockmap (docs/conformance.md): "
)

func limitOf(name string, m Mode) (limit, bool) {
	for _, l := range limits {
		if l.Case == name && l.Modes&m != 0 {
			return l, true
		}
	}
	return limit{}, false
}
