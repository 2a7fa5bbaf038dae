// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// inetDiagReq is struct inet_diag_req_v2 with its struct inet_diag_sockid, for
// one TCP socket (linux/inet_diag.h).
type inetDiagReq struct {
	cookie        uint64
	local, remote netip.AddrPort
}

const anyState = 0xffffffff

func (r inetDiagReq) Len() int { return 56 }

func (r inetDiagReq) Serialize() []byte {
	b := make([]byte, 0, r.Len())
	// As AF_INET6 the kernel finds sockets of both families, IPv4 by their mapped address.
	b = append(b, unix.AF_INET6, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, anyState)
	b = binary.BigEndian.AppendUint16(b, r.local.Port())
	b = binary.BigEndian.AppendUint16(b, r.remote.Port())
	for _, a := range []netip.Addr{r.local.Addr(), r.remote.Addr()} {
		a16 := a.As16()
		b = append(b, a16[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, 0) // any device
	b = binary.NativeEndian.AppendUint32(b, uint32(r.cookie))
	return binary.NativeEndian.AppendUint32(b, uint32(r.cookie>>32))
}

// DestroySocket resets the TCP socket with that cookie in the calling thread's
// network namespace: its owner gets ECONNABORTED, its peer a RST. It needs a
// kernel with CONFIG_INET_DIAG_DESTROY.
func DestroySocket(cookie uint64, local, remote netip.AddrPort) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(inetDiagReq{cookie, local, remote})
	if _, err := req.Execute(unix.NETLINK_INET_DIAG, 0); err != nil {
		return fmt.Errorf("reset the socket %v to %v: %w", local, remote, err)
	}
	return nil
}
