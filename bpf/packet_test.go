// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	abi "github.com/etran-go/etran/c-abi"
)

// TCP flags.
const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	psh = 0x08
	ack = 0x10
	urg = 0x20
	ece = 0x40
	cwr = 0x80
)

var (
	us      = netip.MustParseAddr("10.0.0.1")
	peer    = netip.MustParseAddr("10.0.0.2")
	usMAC   = [6]byte{2, 0, 0, 0, 0, 1}
	peerMAC = [6]byte{2, 0, 0, 0, 0, 2}
)

const (
	usPort   = 4000
	peerPort = 5000
)

// be is an address as the shared structures hold it: network order in memory.
func be(a netip.Addr) uint32 { b := a.As4(); return binary.NativeEndian.Uint32(b[:]) }

// be16 is a port in network order in memory.
func be16(p uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p))
}

// ts is the usual timestamp option.
func ts(val, ecr uint32) []byte {
	o := []byte{1, 1, 8, 10}
	o = binary.BigEndian.AppendUint32(o, val)
	return binary.BigEndian.AppendUint32(o, ecr)
}

// A tcp is a segment of the peer, with the frame around it. The zero value of
// a field means: as an ordinary segment has it.
type tcp struct {
	seq, ack uint32
	flags    byte
	win      uint16
	opts     []byte // octets, a multiple of four
	data     string

	sport    uint16
	dmac     [6]byte
	vlan     uint16 // tag of 802.1Q
	tpid     uint16
	ipOpts   []byte
	frag     uint16 // flags and offset
	proto    byte
	reserved byte // low half of octet 12
	doff     byte // header length in words, if not the true one
	ipLen    int  // added to the total length
	trailer  int  // padding octets behind the datagram
	badSum   bool
	badIPSum bool
}

// frame returns the octets of the segment as it arrives.
func (s tcp) frame() []byte {
	f := s.ethernet()
	l3 := len(f)
	f = append(f, s.ipv4()...)
	f = append(f, s.tcp()...)
	binary.BigEndian.PutUint16(f[l3+2:], uint16(len(f)-l3+s.ipLen))
	sum := ^checksum(f[l3:l3+20+len(s.ipOpts)], 0)
	if s.badIPSum {
		sum ^= 0x1111
	}
	binary.BigEndian.PutUint16(f[l3+10:], sum)
	return append(f, make([]byte, s.trailer)...)
}

func (s tcp) ethernet() []byte {
	dmac := usMAC
	if s.dmac != ([6]byte{}) {
		dmac = s.dmac
	}
	f := append(append([]byte{}, dmac[:]...), peerMAC[:]...)
	if s.vlan != 0 || s.tpid != 0 {
		tpid := uint16(0x8100)
		if s.tpid != 0 {
			tpid = s.tpid
		}
		f = binary.BigEndian.AppendUint16(f, tpid)
		f = binary.BigEndian.AppendUint16(f, 0x2000|s.vlan)
	}
	return append(f, 0x08, 0x00)
}

func (s tcp) ipv4() []byte {
	proto := byte(6)
	if s.proto != 0 {
		proto = s.proto
	}
	h := make([]byte, 20, 60)
	h[0] = byte(0x45 + len(s.ipOpts)/4)
	binary.BigEndian.PutUint16(h[6:], s.frag)
	h[8], h[9] = 64, proto
	src, dst := peer.As4(), us.As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	return append(h, s.ipOpts...)
}

func (s tcp) tcp() []byte {
	h := make([]byte, 20)
	sport := uint16(peerPort)
	if s.sport != 0 {
		sport = s.sport
	}
	binary.BigEndian.PutUint16(h[0:], sport)
	binary.BigEndian.PutUint16(h[2:], usPort)
	binary.BigEndian.PutUint32(h[4:], s.seq)
	binary.BigEndian.PutUint32(h[8:], s.ack)
	doff := byte(5 + len(s.opts)/4)
	if s.doff != 0 {
		doff = s.doff
	}
	h[12] = doff<<4 | s.reserved
	h[13] = s.flags
	binary.BigEndian.PutUint16(h[14:], s.win)
	h = append(h, s.opts...)
	h = append(h, s.data...)
	sum := ^checksum(h, pseudo(peer, us, len(h)))
	if s.badSum {
		sum ^= 0x1111
	}
	binary.BigEndian.PutUint16(h[16:], sum)
	return h
}

// checksum adds octets, as big endian words, to a one's complement sum.
func checksum(b []byte, sum uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func pseudo(src, dst netip.Addr, length int) uint32 {
	a, b := src.As4(), dst.As4()
	return uint32(checksum(append(a[:], b[:]...), 6+uint32(length)))
}

// payloadSum is the csum field of a tap frame: the sum as in memory.
func payloadSum(data string) uint16 {
	return be16(checksum([]byte(data), 0))
}

// tapFrame is what the library writes: header, rest of the room, payload.
func tapFrame(h abi.TxHeader, data string) []byte {
	if h.Magic == 0 {
		h.Magic = abi.Magic ^ abi.Version
	}
	h.Length += uint16(len(data))
	h.Csum += payloadSum(data)
	f := make([]byte, abi.HeaderRoom, abi.HeaderRoom+len(data))
	copy(f, octets(&h))
	return append(f, data...)
}

// sackFrame is an ACK with selective acknowledgements.
func sackFrame(h abi.TxHeader, s abi.TxSack) []byte {
	h.Flags |= abi.TxWithSack
	return append(tapFrame(h, ""), octets(&s)...)
}

// blocks are count blocks, at most three of which are given.
func blocks(count uint32, edges ...[2]uint32) abi.TxSack {
	s := abi.TxSack{Count: count}
	for i, e := range edges {
		s.Block[i].Start, s.Block[i].End = e[0], e[1]
	}
	return s
}

// sackOption is the option as RFC 2018 3 has it, in the room for three blocks.
func sackOption(edges ...[2]uint32) []byte {
	o := []byte{1, 1, 5, byte(2 + 8*len(edges))}
	if len(edges) == 0 {
		o = nil
	}
	for _, e := range edges {
		o = binary.BigEndian.AppendUint32(o, e[0])
		o = binary.BigEndian.AppendUint32(o, e[1])
	}
	for len(o) < 28 {
		o = append(o, 1)
	}
	return o
}

// A sent is a frame that egress built, taken apart.
type sent struct {
	dmac, smac   [6]byte
	tos, ttl     byte
	id           uint16
	sport, dport uint16
	seq, ack     uint32
	flags        byte
	win          uint16
	opts         []byte // those of every segment
	sack         []byte // those behind them
	data         string
}

// parseSent takes a frame apart and checks everything that can be checked.
func parseSent(f []byte) (s sent, err error) {
	if len(f) < abi.HeaderRoom {
		return s, fmt.Errorf("only %d octets", len(f))
	}
	ip, tcp := f[14:34], f[34:]
	switch {
	case f[12] != 8 || f[13] != 0:
		return s, fmt.Errorf("ether type %x", f[12:14])
	case ip[0] != 0x45 || ip[9] != 6:
		return s, fmt.Errorf("IPv4 header % x", ip)
	case binary.BigEndian.Uint16(ip[2:]) != uint16(len(f)-14):
		return s, fmt.Errorf("total length %x of %d octets", ip[2:4], len(f))
	case binary.BigEndian.Uint16(ip[6:]) != 0x4000:
		return s, fmt.Errorf("fragment field %x", ip[6:8])
	case checksum(ip, 0) != 0xffff:
		return s, fmt.Errorf("IPv4 checksum of % x", ip)
	case netip.AddrFrom4([4]byte(ip[12:])) != us || netip.AddrFrom4([4]byte(ip[16:])) != peer:
		return s, fmt.Errorf("addresses % x", ip[12:20])
	case checksum(tcp, pseudo(us, peer, len(tcp))) != 0xffff:
		return s, fmt.Errorf("TCP checksum of % x", tcp)
	case tcp[12] != 8<<4 && tcp[12] != 15<<4:
		return s, fmt.Errorf("data offset %x", tcp[12])
	}
	copy(s.dmac[:], f)
	copy(s.smac[:], f[6:])
	s.tos, s.ttl, s.id = ip[1], ip[8], binary.BigEndian.Uint16(ip[4:])
	s.sport, s.dport = binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])
	s.seq, s.ack = binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:])
	s.flags, s.win = tcp[13], binary.BigEndian.Uint16(tcp[14:])
	s.opts, s.sack, s.data = tcp[20:32], tcp[32:tcp[12]>>2], string(tcp[tcp[12]>>2:])
	return s, nil
}
