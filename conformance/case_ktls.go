// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

var ktls = Case{
	Name: "ktls", Guarantee: "G5", Modes: allModes,
	Doc: "kTLS switched on in the middle: the record layer sees what the program writes",
	Run: func(e *Env) {
		c, s := e.settled()
		for _, x := range []*Sock{c, s} {
			if err := unix.SetsockoptString(x.fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls"); err != nil {
				e.Say("kTLS", "unavailable")
				e.Say("client writes", c.write(1000))
				e.Say("server reads", s.read(1000))
				return
			}
		}
		const solTLS, tx, rx, tls12, aesGCM128 = 282, 1, 2, 0x0303, 51
		info := make([]byte, 40) // struct tls12_crypto_info_aes_gcm_128: iv, key, salt and number are 7s
		for i := range info {
			info[i] = 7
		}
		binary.NativeEndian.PutUint16(info, tls12)
		binary.NativeEndian.PutUint16(info[2:], aesGCM128)
		e.Say("TLS_TX", done(unix.SetsockoptString(c.fd, solTLS, tx, string(info))))
		e.Say("TLS_RX", done(unix.SetsockoptString(s.fd, solTLS, rx, string(info))))
		for _, n := range []int{10, 16000, 100} {
			e.Say("client writes", c.write(n))
			e.Say("server reads", s.read(n))
		}
	},
}
