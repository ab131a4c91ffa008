// SPDX-License-Identifier: Apache-2.0

// Package frame reads the Ethernet frames that were held during a switch and
// makes them fit for the kernel. They lie in memory that a program can write,
// so nothing is believed before it was checked.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/etran-go/etran/runtime/internal/seq"
)

const (
	etherLen    = 14
	ipv4Len     = 20
	tcpLen      = 20
	etherIPv4   = 0x0800
	protocolTCP = 6

	// Largest is the longest frame that one UMEM frame can hold.
	Largest = 2048
)

// ErrForeign means that a frame is not a segment of the expected connection.
var ErrForeign = errors.New("frame does not belong to the connection")

// Tuple names a connection as this host sees it.
type Tuple struct {
	Local, Remote netip.AddrPort
}

// Segment is a checked TCP segment inside a frame.
type Segment struct {
	// Frame begins with the Ethernet header and ends with the segment:
	// Ethernet padding is cut off.
	Frame []byte
	Seq   seq.Num
	Ack   seq.Num
	// HasAck says whether the ACK bit is set.
	HasAck bool
}

// Parse checks that raw is one whole, unfragmented TCP over IPv4 segment that
// the peer of t sent. IPv4 options are refused: they can tell the kernel to send
// the datagram on, and the peer sends it again anyway. The result shares raw's memory.
func Parse(raw []byte, t Tuple) (Segment, error) {
	if len(raw) < etherLen+ipv4Len+tcpLen || len(raw) > Largest {
		return Segment{}, fmt.Errorf("frame of %d octets: %w", len(raw), ErrForeign)
	}
	if binary.BigEndian.Uint16(raw[12:]) != etherIPv4 {
		return Segment{}, fmt.Errorf("not IPv4: %w", ErrForeign)
	}
	ip := raw[etherLen:]
	headerLen, total := int(ip[0]&0x0f)*4, int(binary.BigEndian.Uint16(ip[2:]))
	switch {
	case ip[0]>>4 != 4 || headerLen != ipv4Len || total < headerLen+tcpLen || total > len(ip):
		return Segment{}, fmt.Errorf("IPv4 lengths: %w", ErrForeign)
	case ip[9] != protocolTCP || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0:
		return Segment{}, fmt.Errorf("not an unfragmented TCP segment: %w", ErrForeign)
	}
	tcp := ip[headerLen:total]
	if offset := int(tcp[12]>>4) * 4; offset < tcpLen || offset > len(tcp) {
		return Segment{}, fmt.Errorf("TCP header length: %w", ErrForeign)
	}
	if addrPort(ip[12:], tcp[0:]) != t.Remote || addrPort(ip[16:], tcp[2:]) != t.Local {
		return Segment{}, fmt.Errorf("addresses: %w", ErrForeign)
	}
	return Segment{
		Frame:  raw[:etherLen+total],
		Seq:    seq.Num(binary.BigEndian.Uint32(tcp[4:])),
		Ack:    seq.Num(binary.BigEndian.Uint32(tcp[8:])),
		HasAck: tcp[13]&0x10 != 0,
	}, nil
}

func addrPort(addr, port []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(addr[:4])), binary.BigEndian.Uint16(port))
}

// CompleteChecksum makes the TCP checksum whole. A veth peer that leaves the sum
// to the hardware sends only that of the pseudo header, and the kernel would
// drop the frame when it gets it from a program. The result is false if the
// checksum is neither: the segment was changed on its way.
func (s Segment) CompleteChecksum() bool {
	ip := s.Frame[etherLen:]
	tcp := ip[int(ip[0]&0x0f)*4:]
	pseudo := sum(protocolTCP+uint64(len(tcp)), ip[12:20])
	if fold(sum(pseudo, tcp)) == 0xffff {
		return true
	}
	if binary.BigEndian.Uint16(tcp[16:]) != fold(pseudo) {
		return false
	}
	tcp[16], tcp[17] = 0, 0
	binary.BigEndian.PutUint16(tcp[16:], ^fold(sum(pseudo, tcp)))
	return true
}

func sum(s uint64, b []byte) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// LargestPayload is the longest payload that Build takes.
const LargestPayload = Largest - etherLen - ipv4Len - tcpLen

// Header is what a segment that the peer could have sent says.
type Header struct {
	Tuple
	Source, Destination [6]byte // MACs
	Seq, Ack            seq.Num
	Window              uint16 // as on the wire
}

// Build makes a segment with octets that the peer has sent, for the case that
// the frame they came in is gone. It has no timestamp: the right one may be too
// old by now, if the peer has said something newer (RFC 7323, PAWS), and Linux
// takes segments without. Its TCP checksum is that of the pseudo header.
func Build(h Header, payload []byte) Segment {
	b := make([]byte, 0, etherLen+ipv4Len+tcpLen+len(payload))
	b = append(append(b, h.Destination[:]...), h.Source[:]...)
	b = binary.BigEndian.AppendUint16(b, etherIPv4)

	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ipv4Len+tcpLen+len(payload)))
	b = append(b, 0, 0, 0x40, 0, 64, protocolTCP, 0, 0) // DF, TTL 64
	remote, local := h.Remote.Addr().As4(), h.Local.Addr().As4()
	b = append(append(b, remote[:]...), local[:]...)

	b = binary.BigEndian.AppendUint16(b, h.Remote.Port())
	b = binary.BigEndian.AppendUint16(b, h.Local.Port())
	b = binary.BigEndian.AppendUint32(b, uint32(h.Seq))
	b = binary.BigEndian.AppendUint32(b, uint32(h.Ack))
	b = append(b, tcpLen/4<<4, 0x10) // ACK
	b = binary.BigEndian.AppendUint16(b, h.Window)
	b = append(b, 0, 0, 0, 0)
	b = append(b, payload...)
	ip := b[etherLen:]
	tcp := ip[ipv4Len:]
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(0, ip[:ipv4Len])))
	binary.BigEndian.PutUint16(tcp[16:], fold(sum(protocolTCP+uint64(len(tcp)), ip[12:20])))
	return Segment{Frame: b, Seq: h.Seq, Ack: h.Ack, HasAck: true}
}
