// SPDX-License-Identifier: Apache-2.0

package conformance

// registry is every case, in the order in which they run.
var registry = []Case{
	sendRecv,
	readWrite,
	sendmsgRecvmsg,
	readvWritev,
	sendfile,
	spliceWriter,
	spliceReader,
	spliceAfterRecv,
	spliceIdle,
	sendmmsgRecvmmsg,
	peek,
	peekMessages,
	peekOff,
	waitall,
	dontwait,
	trunc,
	empty,
	efault,
	efaultSend,
	oob,
	oobInline,
	ioUring,
	writeAfterShutdown,
	shutdownWR,
	shutdownRD,
	shutdownRDUnread,
	shutdownRDWR,
	shutdownWakes,
	closeEnd,
	closeUnread,
	closePartlyRead,
	closeUnreadBoth,
	closeAfterShutdown,
	lingerZero,
	writeToClosed,
	rcvtimeo,
	sndtimeo,
	eintr,
	restart,
	signalWriter,
	turnedBlocking,
	acceptedBlocking,
	turnedBlockingUsed,
	keepalive,
	tcpInfo,
	tcpInfoBytes,
	fork,
	scmRights,
	threads,
	killWriter,
	killReader,
	killUnread,
	shortConnections,
	manyOpen,
	halfClose,
	halfCloseSettled,
	rcvlowat,
	tcpInq,
	timestamps,
	zerocopyReceive,
	msgZerocopy,
	fastopen,
	earlyBytes,
	mixedQueues,
	cork,
	fionreadNew,
	fionreadJoined,
	fionreadMixed,
	fionreadSpilled,
	siocoutq,
	ktls,
	mptcp,
	ipv6,
	dualStack,
	sameTuple,
	strangers,
	reconnect,
	backPressure,
	backPressureSmall,
	backPressureBlocking,
	spillAndBack,
	epollLevel,
	epollEdge,
	epollShortReads,
	epollShortSpilled,
	smallStream,
	agentGone, // the last
}

func find(name string) (Case, bool) {
	for _, c := range registry {
		if c.Name == name {
			return c, true
		}
	}
	return Case{}, false
}

// Names lists the cases.
func Names() []string {
	var names []string
	for _, c := range registry {
		names = append(names, c.Name)
	}
	return names
}
