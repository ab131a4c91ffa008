// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	abi "github.com/etran-go/etran/c-abi"
)

// A fuzz input is a tape: it is read octet by octet as a list of steps of one
// connection's life. Values are drawn near those that matter in the present
// state, so that random tapes get past the first check. A tape that has ended
// reads as zeros.
type tape struct{ b []byte }

func (t *tape) ended() bool { return len(t.b) == 0 }

func (t *tape) u8() byte {
	if len(t.b) == 0 {
		return 0
	}
	v := t.b[0]
	t.b = t.b[1:]
	return v
}

func (t *tape) u16() uint16 { return uint16(t.u8())<<8 | uint16(t.u8()) }
func (t *tape) u32() uint32 { return uint32(t.u16())<<16 | uint32(t.u16()) }

// near is one of the values or close to it; rarely anything at all.
func (t *tape) near(values ...uint32) uint32 {
	choice := t.u8()
	if choice >= 240 {
		return t.u32()
	}
	v := values[int(choice)%len(values)]
	if choice >= 160 { // far enough to leave a window, either way
		return v + uint32(int32(int16(t.u16())))
	}
	if choice >= 80 {
		return v + uint32(int32(int8(t.u8())))
	}
	return v
}

// text is n octets of payload.
func (t *tape) text(n int) string { return string(bytes.Repeat([]byte{t.u8()}, n)) }

// A fuzzed runs steps on the lab's connection and knows what must hold.
type fuzzed struct {
	testing.TB
	*lab
	*tape
	step int
}

func (z *fuzzed) must(ok bool, format string, args ...any) {
	z.Helper()
	if !ok {
		z.Fatalf("step %d: %s", z.step, fmt.Sprintf(format, args...))
	}
}

const fuzzSteps = 24

// FuzzDataPath runs tap frames, segments and the control program in any order
// on one connection. What each may change, and what may leave, is checked
// after every step.
func FuzzDataPath(f *testing.F) {
	for _, seed := range []string{
		"", "\x00", "\x80\x00\x00\x00", "\xc0\x01\x02", // one step each
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x60\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		f.Add([]byte(seed))
	}
	for kind := range 256 {
		f.Add(bytes.Repeat([]byte{byte(kind), 3, byte(kind * 7)}, 40))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		in := &tape{input}
		z := &fuzzed{TB: t, tape: in, lab: activeAgain(t, in.standard)}
		for z.step = 0; z.step < fuzzSteps && !z.ended(); z.step++ {
			z.anyStep()
		}
	})
}

var fuzzPub *ebpf.Map

// activeAgain is active for very many times: it keeps the published map, since
// another one costs an RCU grace period.
func activeAgain(t testing.TB, set func(*abi.Conn)) *lab {
	t.Helper()
	l, err := theLab()
	if err != nil {
		t.Fatal(err)
	}
	if fuzzPub == nil || l.pub != fuzzPub {
		l.reset(t)
		fuzzPub = l.pub
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.Conns.Put(l.index(), &abi.Conn{}))
	must(l.InstallConn(l.index(), standard()))
	must(l.Rings.Put(uint32(app*abi.MaxRings+ringNo), abi.Ring{Consumed: l.ring(t, ringNo).Delivered}))
	l.activate(t, set)
	return l
}

// standard changes the connection that a tape is about.
func (t *tape) standard(c *abi.Conn) {
	flags := t.u8()
	c.Flags = uint32(flags) & (abi.ConnTimestamps | abi.ConnTsValid | abi.ConnVerifyCsum |
		abi.ConnNotifyAck | abi.ConnSack)
	if flags&0x80 != 0 { // everything wraps
		c.RcvNxt, c.RcvAdv, c.RcvHigh, c.SndWl1 = 1<<32-500, 9500, 1<<32-500, 1<<32-500
		c.SndUna, c.SndNxt, c.SndWl2 = 1<<32-100, 400, 1<<32-100
	}
	c.SndWscale, c.RcvWscale = t.u8()&15, t.u8()&15
	if t.u8()&1 != 0 {
		c.Mss = 536
	}
}

func (z *fuzzed) anyStep() {
	switch kind := z.u8(); {
	case kind < 110:
		z.writeStep()
	case kind < 230:
		z.arriveStep()
	default:
		z.controlStep()
	}
	neighbour := abi.Conn{}
	if err := z.Conns.Lookup(z.index()+1, &neighbour); err != nil {
		z.Fatal(err)
	}
	z.must(neighbour == abi.Conn{}, "the next connection's record became %+v", neighbour)
}

// =============================================================================
// Control
// =============================================================================

func (z *fuzzed) controlStep() {
	before := z.conn(z)
	req := abi.Ctl{Op: z.near(1, 2, 3, 4), Index: z.index(), Generation: z.near(connGen),
		From: z.near(before.State), To: z.near(0, 1, 2, 3), Conn: *standard()}
	_, err := z.Ctl(req)
	after := z.conn(z)
	z.must(after.State <= uint32(abi.FlowStateActive), "state %d", after.State)
	if err != nil {
		sameConn(z, "record after a refused operation", after, before)
	}
	p := z.published(z)
	z.must(p.Generation == after.Generation || after.State == before.State, "generation published %d", p.Generation)
}

// =============================================================================
// Egress
// =============================================================================

func (z *fuzzed) header(c *abi.Conn) (abi.TxHeader, string) {
	h := abi.TxHeader{
		Slot: z.near(slot), Generation: z.near(connGen),
		Flags: uint32(z.u8()) & 0x3f,
		Seq:   z.near(c.SndNxt, c.SndUna, c.SndUna+c.SndWnd),
		Ack:   z.near(c.RcvNxt, c.RcvHigh, c.RcvAdv),
		Wnd:   z.near(10000, 0, 1<<16, 1<<30, 1<<32-1),
		Ring:  z.near(ringNo, abi.MaxRings), Consumed: z.near(0, 128, 1<<31),
	}
	n := z.near(0, 1, uint32(c.Mss), 500) % 2000
	return h, z.text(int(n))
}

// writeFrame makes a tap frame: well-formed but for the values, mostly.
func (z *fuzzed) writeFrame(c *abi.Conn) (frame []byte, sumOK bool) {
	h, data := z.header(c)
	if h.Flags&abi.TxWithSack != 0 && z.u8() < 200 {
		data = ""
	}
	frame, sumOK = tapFrame(h, data), true
	if h.Flags&abi.TxWithSack != 0 {
		ack := c.RcvNxt
		s := blocks(z.near(1, 2, 3, 0, 4))
		for i := range s.Block {
			s.Block[i].Start = z.near(ack+100, ack, c.RcvHigh)
			s.Block[i].End = z.near(c.RcvHigh, ack+200, ack)
		}
		frame = append(frame, octets(&s)...)
	}
	switch odd := z.u8(); {
	case odd < 16: // one octet of the header at random
		at := int(z.u8()) % len(octets(&h))
		sumOK = at < len(octets(&h))-2
		frame[at] = z.u8()
	case odd < 24:
		frame = frame[:int(z.u16())%(len(frame)+1)]
	case odd < 32:
		frame = append(frame, make([]byte, z.u8())...)
	}
	return frame, sumOK
}

func (z *fuzzed) writeStep() {
	before := z.conn(z)
	frame, sumOK := z.writeFrame(&before)
	if len(frame) < 14 { // the kernel refuses to run on less
		return
	}
	h := abi.TxHeader{}
	if len(frame) >= abi.HeaderRoom {
		copy(octets(&h), frame)
	}
	pub := z.published(z)
	tap := tapIf
	if z.u8() >= 250 {
		tap = z.ifindex // not a tap
	}
	r := z.run(z, z.Egress, tap, 0, frame, 0)
	if r.verdict == verdictDrop {
		z.must(r.counted != "", "dropped without a reason")
		sameConn(z, "record after a refused frame", r.after, r.before)
		r.pub.TxRefused, r.pub.TxReason = pub.TxRefused, pub.TxReason
		z.must(r.pub == pub, "published by a refused frame: %+v, before %+v", r.pub, pub)
		return
	}
	z.must(r.verdict == verdictRedirect, "egress verdict %d", r.verdict)
	z.must(r.counted == "", "sent, but counted %q", r.counted)
	z.must(tap == tapIf, "sent from what is no tap")
	z.sentFrame(&r, &h, sumOK)
	z.sentState(&r, &h)
}

// sentFrame: whatever leaves is a segment of this connection in its window.
func (z *fuzzed) sentFrame(r *result, h *abi.TxHeader, sumOK bool) {
	f, b, a := r.frame, &r.before, &r.after
	if !sumOK { // a wrong sum of the payload harms its owner only
		binary.BigEndian.PutUint16(f[50:], 0)
		binary.BigEndian.PutUint16(f[50:], ^checksum(f[34:], pseudo(us, peer, len(f)-34)))
	}
	s, err := parseSent(f)
	z.must(err == nil, "frame: %v", err)
	z.must(s.dmac == peerMAC && s.smac == usMAC, "MACs %x %x", s.dmac, s.smac)
	z.must(s.tos == b.Tos && s.ttl == b.Ttl && s.id == b.IpId, "TOS %d, TTL %d, id %d", s.tos, s.ttl, s.id)
	z.must(s.sport == usPort && s.dport == peerPort, "ports %d %d", s.sport, s.dport)
	z.must(s.flags&^psh == ack, "flags %#x", s.flags)
	z.must(binary.BigEndian.Uint16(f[52:]) == 0, "urgent pointer")
	z.must(len(s.data) <= int(b.Mss) && len(f) <= 1500+14, "%d octets, MSS %d", len(s.data), b.Mss)
	n, end := uint32(len(s.data)), s.seq+uint32(len(s.data))
	switch {
	case n == 0:
		z.must(s.seq == b.SndNxt || s.seq == b.SndUna-1, "empty, SEQ %d", s.seq)
	case h.Flags&abi.TxRetransmit != 0:
		z.must(!before(s.seq, b.SndUna) && !before(b.SndNxt, end), "again [%d, %d)", s.seq, end)
	default:
		limit := b.SndUna + min(b.SndWnd, abi.FixedWindow)
		z.must(s.seq == b.SndNxt && !before(limit, end), "new [%d, %d), limit %d", s.seq, end, limit)
	}
	z.must(s.ack == b.RcvNxt || before(b.RcvNxt, s.ack) && !before(b.RcvHigh, s.ack),
		"ACK %d, acknowledged %d, delivered %d", s.ack, b.RcvNxt, b.RcvHigh)
	// The window ends where the record says, or less than a unit before.
	edge := s.ack + uint32(s.win)<<min(b.RcvWscale, 14)
	z.must(!before(a.RcvAdv, edge), "window to %d, promised %d", edge, a.RcvAdv)
	z.sentOptions(&s, b)
}

func (z *fuzzed) sentOptions(s *sent, b *abi.Conn) {
	nops := bytes.Repeat([]byte{1}, 28)
	if b.Flags&abi.ConnTimestamps == 0 {
		z.must(bytes.Equal(s.opts, nops[:12]), "options % x", s.opts)
	} else {
		z.must(bytes.Equal(s.opts[:4], []byte{1, 1, 8, 10}), "options % x", s.opts)
	}
	if len(s.sack) == 0 || bytes.Equal(s.sack, nops) {
		return
	}
	n := (int(s.sack[3]) - 2) / 8
	z.must(b.Flags&abi.ConnSack != 0 && len(s.data) == 0, "blocks not negotiated, or with data")
	z.must(bytes.Equal(s.sack[:3], []byte{1, 1, 5}) && n >= 1 && n <= 3 && int(s.sack[3]) == 2+8*n,
		"selective acknowledgement % x", s.sack)
	for i := range n {
		start := binary.BigEndian.Uint32(s.sack[4+8*i:])
		end := binary.BigEndian.Uint32(s.sack[8+8*i:])
		z.must(before(s.ack, start) && before(start, end) && !before(b.RcvHigh, end),
			"block [%d, %d), ACK %d, delivered %d", start, end, s.ack, b.RcvHigh)
	}
	z.must(bytes.Equal(s.sack[4+8*n:], nops[4+8*n:]), "behind the blocks: % x", s.sack)
}

// sentState: only what egress may move has moved, and only forward.
func (z *fuzzed) sentState(r *result, h *abi.TxHeader) {
	b, a := r.before, r.after
	z.must(b.State == uint32(abi.FlowStateActive), "sent in state %d", b.State)
	z.must(!before(a.SndNxt, b.SndNxt) && !before(a.RcvNxt, b.RcvNxt) && !before(a.RcvAdv, b.RcvAdv),
		"went back: SND.NXT %d to %d, RCV.NXT %d to %d, edge %d to %d",
		b.SndNxt, a.SndNxt, b.RcvNxt, a.RcvNxt, b.RcvAdv, a.RcvAdv)
	z.must(r.pub.SndNxt == a.SndNxt && r.pub.RcvNxt == a.RcvNxt, "published %+v", r.pub)
	z.must(a.SegsOut == b.SegsOut+1, "segments %d to %d", b.SegsOut, a.SegsOut)
	grown := a.SndNxt - b.SndNxt
	z.must(grown == 0 || grown == uint32(h.Length), "SND.NXT %d to %d", b.SndNxt, a.SndNxt)
	// The rest stays as it was.
	b.SndNxt, b.RcvNxt, b.RcvAdv, b.SegsOut, b.BytesOut = a.SndNxt, a.RcvNxt, a.RcvAdv, a.SegsOut, a.BytesOut
	b.Retrans, b.RttStartNs, b.RttSeq, b.IpId = a.Retrans, a.RttStartNs, a.RttSeq, a.IpId
	b.Flags |= a.Flags & (abi.ConnNotifyAck | abi.ConnRecovery)
	b.Recover = a.Recover
	sameConn(z, "record", a, b)
}

// before is SEQ arithmetic (RFC 9293 3.4).
func before(a, b uint32) bool { return int32(a-b) < 0 }

// =============================================================================
// Ingress
// =============================================================================

func (z *fuzzed) segment(c *abi.Conn) tcp {
	s := tcp{
		seq:   z.near(c.RcvNxt, c.RcvHigh, c.RcvAdv, c.RcvNxt-1),
		ack:   z.near(c.SndNxt, c.SndUna, c.SndUna-c.MaxWnd),
		flags: ack, win: z.u16(),
	}
	if odd := z.u8(); odd >= 128 {
		s.flags = odd << 1 >> 1
		s.flags ^= ack
	}
	if z.u8() < 200 {
		s.opts = ts(z.near(c.TsRecent), z.u32())
	} else { // anything
		s.opts = make([]byte, int(z.u8()%11)*4)
		for i := range s.opts {
			s.opts[i] = z.u8()
		}
	}
	s.data = z.text(int(z.near(0, 1, 500, 1448) % 1900))
	switch z.u8() {
	case 1:
		s.frag = z.u16()
	case 2:
		s.ipOpts = make([]byte, int(z.u8()%11)*4)
	case 3:
		s.reserved = z.u8() & 15
	case 4:
		s.doff = z.u8() & 15
	case 5:
		s.ipLen = int(int8(z.u8()))
	case 6:
		s.trailer = int(z.u8())
	case 7:
		s.badSum = true
	case 8:
		s.vlan = z.u16() & 0xfff
	case 9:
		s.sport = z.u16()
	case 10:
		s.proto = z.u8()
	}
	return s
}

func (z *fuzzed) arriveStep() {
	c := z.conn(z)
	seg := z.segment(&c)
	frame := seg.frame()
	mutated := z.u8() >= 230
	for n := z.u8() & 3; mutated && n > 0; n-- {
		frame[int(z.u16())%len(frame)] = z.u8()
	}
	ring, pub := z.ring(z, ringNo), z.published(z)
	queue := uint32(z.u8()) >> 7 // the second has no socket
	r := z.run(z, z.Ingress, z.ifindex, queue, frame, 0)

	z.must(bytes.Equal(r.frame, frame), "ingress changed the frame")
	delivered := z.ring(z, ringNo).Delivered - ring.Delivered
	switch r.verdict {
	case verdictPass:
		z.must(r.before.State < uint32(abi.FlowStateHold) || r.after == r.before, "passed, but moved the record")
		z.must(r.meta == nil && delivered == 0 && r.counted == "", "passed: metadata %v, %d delivered, counted %q",
			r.meta, delivered, r.counted)
	case verdictDrop:
		z.must(delivered == 0 && r.counted != "", "dropped: %d delivered, counted %q", delivered, r.counted)
		z.must(r.before.State >= uint32(abi.FlowStateHold), "dropped in state %d", r.before.State)
	case verdictRedirect:
		z.must(delivered == 1 && r.meta != nil && queue == 0, "%d delivered, queue %d", delivered, queue)
		z.delivered(&r, len(frame))
	default:
		z.must(false, "ingress verdict %d", r.verdict)
	}
	z.arrivedState(&r, &pub)
}

// delivered: what the library is told is true and inside the window.
func (z *fuzzed) delivered(r *result, length int) {
	b, m := &r.before, r.meta
	z.must(m.Slot == slot && m.Generation == b.Generation, "metadata %+v", *m)
	if b.State == uint32(abi.FlowStateHold) {
		z.must(m.Kind == uint16(abi.RxKindHeld) && int(m.Length) == length, "held: %+v", *m)
		return
	}
	z.must(b.State == uint32(abi.FlowStateActive), "delivered in state %d", b.State)
	end := m.Seq + uint32(m.Length)
	switch abi.RxKind(m.Kind) {
	case abi.RxKindData:
		z.must(m.Length > 0 && int(m.Offset)+int(m.Length) <= length, "payload %+v in %d octets", *m, length)
		z.must(!before(m.Seq, b.RcvNxt) && !before(b.RcvAdv, end), "data [%d, %d), window [%d, %d)",
			m.Seq, end, b.RcvNxt, b.RcvAdv)
		z.must(!before(r.after.RcvHigh, end), "data to %d, delivered %d", end, r.after.RcvHigh)
	case abi.RxKindCtl:
		z.must(int(m.Length) == length && r.pub.Events&abi.EventCtl != 0, "control: %+v", *m)
		z.control(r)
	case abi.RxKindAck, abi.RxKindProbe:
		z.must(m.Length == 0 && m.Offset == 0, "no payload: %+v", *m)
	default:
		z.must(false, "kind %d", m.Kind)
	}
}

// control: a segment that makes a demotion was exact (RFC 5961).
func (z *fuzzed) control(r *result) {
	b, f := &r.before, r.frame
	l4 := 14 + int(f[14]&15)*4
	if binary.BigEndian.Uint16(f[12:]) != 0x0800 {
		l4 += 4
	}
	seqNo, ackNo, flags := binary.BigEndian.Uint32(f[l4+4:]), binary.BigEndian.Uint32(f[l4+8:]), f[l4+13]
	if flags&rst != 0 {
		z.must(seqNo == b.RcvNxt || seqNo == b.RcvHigh, "reset with SEQ %d", seqNo)
		return
	}
	z.must(flags&syn == 0, "SYN")
	z.must(flags&ack != 0 && ackNo-(b.SndUna-b.MaxWnd) <= b.SndNxt-(b.SndUna-b.MaxWnd), "ACK %d", ackNo)
	z.must(!before(b.RcvAdv, seqNo), "SEQ %d beyond %d", seqNo, b.RcvAdv)
}

func (z *fuzzed) arrivedState(r *result, pub *abi.Pub) {
	b, a := r.before, r.after
	if b.State == uint32(abi.FlowStateActive) {
		z.must(!before(a.SndUna, b.SndUna) && !before(b.SndNxt, a.SndUna), "SND.UNA %d to %d, SND.NXT %d",
			b.SndUna, a.SndUna, b.SndNxt)
		z.must(!before(a.RcvHigh, b.RcvHigh), "RCV.HIGH %d to %d", b.RcvHigh, a.RcvHigh)
		z.must(a.RcvHigh == b.RcvHigh || !before(a.RcvAdv, a.RcvHigh), "RCV.HIGH %d beyond %d", a.RcvHigh, a.RcvAdv)
		z.must(r.pub.SndUna == a.SndUna, "SND.UNA published %d, is %d", r.pub.SndUna, a.SndUna)
		z.must(before(a.SndUna+abi.FixedWindow, r.pub.SndLimit) == false, "limit %d", r.pub.SndLimit)
	}
	z.must(r.pub.Generation == pub.Generation && r.pub.State == pub.State && r.pub.SndNxt == pub.SndNxt &&
		r.pub.RcvNxt == pub.RcvNxt && r.pub.TxErrors == pub.TxErrors, "published %+v", r.pub)
	// Only what ingress may move.
	b.SndUna, b.SndWnd, b.MaxWnd, b.SndWl1, b.SndWl2 = a.SndUna, a.SndWnd, a.MaxWnd, a.SndWl1, a.SndWl2
	b.RcvHigh, b.TsRecent, b.DupAcks, b.SrttUs, b.RttvarUs = a.RcvHigh, a.TsRecent, a.DupAcks, a.SrttUs, a.RttvarUs
	b.RttStartNs, b.SegsIn, b.BytesIn, b.Held = a.RttStartNs, a.SegsIn, a.BytesIn, a.Held
	b.ObsEnd, b.ObsAck, b.ObsSegs, b.ObsMac, b.Recover = a.ObsEnd, a.ObsAck, a.ObsSegs, a.ObsMac, a.Recover
	const moved = abi.ConnTsValid | abi.ConnNotifyAck | abi.ConnObserved | abi.ConnRecovery
	b.Flags = b.Flags&^moved | a.Flags&moved
	sameConn(z, "record", a, b)
}
