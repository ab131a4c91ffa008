// SPDX-License-Identifier: Apache-2.0

package adversary

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// A Judge looks at every frame that one host sends to another by a wire, at
// the other's end, and at what the other answers. A frame is right if it is
//
//   - an ARP message about the sender's own addresses, or
//   - a whole IPv4 datagram without options or fragmentation, with right MAC
//     and IP addresses, lengths and header checksum, that is
//   - a TCP segment of a connection whose handshake was seen, with well-formed
//     options, that lies inside the window last offered by the peer and
//     acknowledges nothing that the peer did not send; or a reset.
//
// The TCP checksum is right, or the kernel's unfinished one. A program gives the
// sum of its payload itself: a wrong one is counted, and is no fault, since the
// peer drops the segment.
//
// Selective acknowledgements, too, must tell of octets that the peer sent.
type Judge struct {
	from, to       netip.Addr
	fromMAC, toMAC [6]byte
	wire           *capture
	stop, done     chan struct{}

	// Of the goroutine that looks.
	conns map[tuple]*seen
	v     Verdict
}

// Verdict is what a Judge has to say.
type Verdict struct {
	Frames, Segments uint64
	// Lost frames were not looked at: there was no room.
	Lost uint64
	// BadSums are segments with a wrong checksum.
	BadSums uint64
	// Wrong frames, and a description of the first ones.
	Wrong  uint64
	Faults []string
}

// tuple names a connection by the sender's view.
type tuple struct{ fromPort, toPort uint16 }

// seen is what is known of a connection, all as the receiving host sees it.
type seen struct {
	wscale  uint8  // of the receiver's windows
	first   uint32 // its initial sequence number
	una     uint32 // highest acknowledgement that it sent
	earlier uint32 // una before the last look
	low     uint32 // una when surely all frames sent before had been seen
	edge    uint32 // highest right edge that it offered
	sentEnd uint32 // highest sequence end that it sent
}

// NewJudge starts looking at a device; it must be called on a thread in the
// receiving host's namespace.
func NewJudge(ifindex int, from, to netip.Addr, fromMAC, toMAC [6]byte) (*Judge, error) {
	c, err := newCapture(ifindex)
	if err != nil {
		return nil, err
	}
	j := &Judge{from: from, to: to, fromMAC: fromMAC, toMAC: toMAC, wire: c,
		stop: make(chan struct{}), done: make(chan struct{}), conns: map[tuple]*seen{}}
	go j.look()
	return j, nil
}

// Verdict ends the looking.
func (j *Judge) Verdict() Verdict {
	close(j.stop)
	<-j.done
	defer j.wire.close()
	if n, err := j.wire.unseen(); err != nil || n > 0 {
		j.fault("%d answers unseen (%v)", n, err)
	}
	return j.v
}

func (j *Judge) look() {
	defer close(j.done)
	batch := make([][]byte, 0, 4096)
	for {
		frames, lost, err := j.wire.next(batch[:0])
		for _, c := range j.conns {
			c.earlier = c.una
		}
		if err == nil {
			// What these frames answer went out before they came in.
			err = j.wire.sent(j.answered)
		}
		if err != nil {
			j.fault("%v", err)
			return
		}
		j.v.Lost += lost
		for _, f := range frames {
			j.v.Frames++
			if err := j.frame(f); err != nil {
				j.v.Wrong++
				j.fault("%v: % x", err, f[:min(len(f), 100)])
			}
		}
		if len(frames) < cap(batch) {
			for _, c := range j.conns {
				c.low = c.earlier // older than every frame to come
			}
		}
		select {
		case <-j.stop:
			if len(frames) == 0 {
				return
			}
		default:
		}
	}
}

func (j *Judge) fault(format string, args ...any) {
	if len(j.v.Faults) < 10 {
		j.v.Faults = append(j.v.Faults, fmt.Sprintf(format, args...))
	}
}

func (j *Judge) frame(f []byte) error {
	if len(f) < 34 {
		return fmt.Errorf("%d octets", len(f))
	}
	dst, src := [6]byte(f), [6]byte(f[6:])
	if src != j.fromMAC {
		return fmt.Errorf("source MAC %x", src)
	}
	switch kind := binary.BigEndian.Uint16(f[12:]); kind {
	case 0x0806:
		if len(f) < 42 || [6]byte(f[22:]) != j.fromMAC || netip.AddrFrom4([4]byte(f[28:])) != j.from {
			return fmt.Errorf("ARP of another")
		}
		return nil
	case 0x0800:
		if dst != j.toMAC {
			return fmt.Errorf("destination MAC %x", dst)
		}
		return j.ipv4(f[14:])
	default:
		return fmt.Errorf("ether type %#x", kind)
	}
}

func (j *Judge) ipv4(ip []byte) error {
	total := int(binary.BigEndian.Uint16(ip[2:]))
	switch {
	case ip[0] != 0x45:
		return fmt.Errorf("IPv4 version or options: %#x", ip[0])
	case total > len(ip) || total < 20 || len(ip) > total && len(ip) > 46:
		return fmt.Errorf("total length %d of %d octets", total, len(ip))
	case binary.BigEndian.Uint16(ip[6:])&^0x4000 != 0:
		return fmt.Errorf("fragment %#x", ip[6:8])
	case fold(sum(0, ip[:20])) != 0xffff:
		return fmt.Errorf("IPv4 checksum")
	case netip.AddrFrom4([4]byte(ip[12:])) != j.from || netip.AddrFrom4([4]byte(ip[16:])) != j.to:
		return fmt.Errorf("addresses")
	case ip[9] != 6:
		return fmt.Errorf("protocol %d", ip[9])
	}
	return j.tcp(ip[12:20], ip[20:total])
}

func (j *Judge) tcp(addresses, tcp []byte) error {
	j.v.Segments++
	if len(tcp) < 20 || int(tcp[12]>>4)*4 < 20 || int(tcp[12]>>4)*4 > len(tcp) {
		return fmt.Errorf("TCP header length")
	}
	pseudo := sum(6+uint64(len(tcp)), addresses)
	// The kernel leaves its own segments' sums to the device: there is only
	// that of the pseudo header.
	if got := binary.BigEndian.Uint16(tcp[16:]); fold(sum(pseudo, tcp)) != 0xffff && got != fold(pseudo) {
		j.v.BadSums++
	}
	opts, err := parseOptions(tcp[20 : int(tcp[12]>>4)*4])
	if err != nil {
		return err
	}
	return j.segment(tcp, opts)
}

const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
	urg = 0x20
)

// Octets that may be sent again although the peer has acknowledged them: its
// acknowledgement may be on the way.
const old = 1 << 20

func (j *Judge) segment(tcp []byte, o options) error {
	key := tuple{binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])}
	seq, ackNo := binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:])
	flags, length := tcp[13], len(tcp)-int(tcp[12]>>4)*4
	if flags&syn != 0 && flags&ack == 0 || flags&rst != 0 {
		return nil // the beginning, or the end also of what nobody knows
	}
	c := j.conns[key]
	switch {
	case c == nil:
		return fmt.Errorf("segment of no connection: ports %v, flags %#x", key, flags)
	case flags&syn != 0 || flags&ack == 0 || flags&urg != 0:
		return fmt.Errorf("flags %#x", flags)
	case after(seq+uint32(length), c.edge) && length > 0 || after(seq, c.edge+1):
		return fmt.Errorf("[%d, +%d) beyond the window's edge %d", seq, length, c.edge)
	case after(c.low-old, seq):
		return fmt.Errorf("SEQ %d, acknowledged up to %d", seq, c.low)
	case after(ackNo, c.sentEnd):
		return fmt.Errorf("ACK %d of %d sent", ackNo, c.sentEnd)
	}
	for _, b := range o.sack {
		if after(b[1], c.sentEnd) || !after(b[1], b[0]) {
			return fmt.Errorf("block %v of %d sent", b, c.sentEnd)
		}
	}
	return nil
}

// answered takes what the receiving host says about its end.
func (j *Judge) answered(f []byte) {
	if len(f) < 54 || binary.BigEndian.Uint16(f[12:]) != 0x0800 || f[23] != 6 {
		return
	}
	ip := f[14:]
	tcp := ip[int(ip[0]&15)*4:]
	header := int(tcp[12]>>4) * 4
	length := uint32(int(binary.BigEndian.Uint16(ip[2:])) - int(ip[0]&15)*4 - header)
	flags := tcp[13]
	if flags&rst != 0 {
		return
	}
	key := tuple{binary.BigEndian.Uint16(tcp[2:]), binary.BigEndian.Uint16(tcp)}
	c := j.conns[key]
	if seq := binary.BigEndian.Uint32(tcp[4:]); flags&(syn|ack) == syn|ack && (c == nil || c.first != seq) {
		c = &seen{first: seq, sentEnd: seq + 1, una: binary.BigEndian.Uint32(tcp[8:])}
		c.edge, c.earlier, c.low = c.una, c.una, c.una
		if o, err := parseOptions(tcp[20:header]); err == nil && o.wscale >= 0 {
			c.wscale = uint8(o.wscale)
		}
		j.conns[key] = c
	}
	if c != nil {
		c.take(tcp[:header], flags, length)
	}
}

func (c *seen) take(tcp []byte, flags byte, length uint32) {
	seq, ackNo := binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:])
	window, end := uint32(binary.BigEndian.Uint16(tcp[14:])), seq+length
	if flags&syn != 0 { // never scaled
		if edge := ackNo + window; after(edge, c.edge) {
			c.edge = edge
		}
		return
	}
	if flags&fin != 0 {
		end++
	}
	if after(ackNo, c.una) {
		c.una = ackNo
	}
	if edge := ackNo + window<<c.wscale; after(edge, c.edge) {
		c.edge = edge
	}
	if after(end, c.sentEnd) {
		c.sentEnd = end
	}
}

func after(a, b uint32) bool { return int32(a-b) > 0 }

type options struct {
	wscale int // -1: none
	sack   [][2]uint32
}

func parseOptions(b []byte) (o options, err error) {
	o.wscale = -1
	for len(b) > 0 {
		kind := b[0]
		if kind == 0 {
			return o, nil
		}
		if kind == 1 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return o, fmt.Errorf("options % x", b)
		}
		body := b[2:b[1]]
		b = b[b[1]:]
		switch {
		case kind == 2 && len(body) == 2, kind == 4 && len(body) == 0, kind == 8 && len(body) == 8:
		case kind == 3 && len(body) == 1:
			o.wscale = int(min(body[0], 14))
		case kind == 5 && len(body)%8 == 0 && len(body) > 0:
			for ; len(body) > 0; body = body[8:] {
				o.sack = append(o.sack, [2]uint32{binary.BigEndian.Uint32(body), binary.BigEndian.Uint32(body[4:])})
			}
		default:
			return o, fmt.Errorf("option %d of %d octets", kind, len(body))
		}
	}
	return o, nil
}

// Checksum is the one's complement sum of octets (RFC 1071), not inverted.
func Checksum(b []byte) uint16 { return fold(sum(0, b)) }

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
