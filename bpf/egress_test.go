// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	abi "github.com/etran-go/etran/c-abi"
)

// header is the request of an ordinary new segment of the standard connection.
func header(set func(*abi.TxHeader)) abi.TxHeader {
	h := abi.TxHeader{Slot: slot, Generation: connGen, Seq: 5500, Ack: 1000, Wnd: 10000, Ring: ringNo}
	if set != nil {
		set(&h)
	}
	return h
}

// =============================================================================
// Who writes, and for whom
// =============================================================================

// Refusals that come before any connection is known, or that concern another
// one: nothing is published.
func TestEgressNotAllowed(t *testing.T) {
	good := tapFrame(header(nil), "data")
	but := func(set func(*abi.TxHeader)) []byte { return tapFrame(header(set), "data") }
	for _, c := range []struct {
		name   string
		frame  []byte
		set    func(*testing.T, *lab)
		tap    int
		reason string
	}{
		{name: "not a tap", frame: good, tap: -1, reason: "tx_no_app"},
		{name: "application revoked", frame: good, reason: "tx_no_app", set: func(t *testing.T, l *lab) {
			if err := l.RevokeApp(app); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "tap of an earlier application", frame: good, reason: "tx_no_app", set: func(t *testing.T, l *lab) {
			if err := l.SetTap(tapIf, app, appGen-1); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "tap of generation 0", frame: good, reason: "tx_no_app", set: func(t *testing.T, l *lab) {
			if err := l.SetTap(tapIf, app+1, 0); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "shorter than the header", frame: good[:40], reason: "tx_malformed"},
		{name: "wrong magic", frame: but(func(h *abi.TxHeader) { h.Magic = abi.Magic }), reason: "tx_malformed"},
		{name: "shorter than it says", frame: good[:len(good)-1], reason: "tx_malformed"},
		{name: "longer than it says", frame: append(append([]byte{}, good...), 0), reason: "tx_malformed"},
		{name: "blocks and payload", frame: append(but(func(h *abi.TxHeader) { h.Flags = abi.TxWithSack }),
			make([]byte, 28)...), reason: "tx_malformed"},
		{name: "blocks announced", frame: tapFrame(header(func(h *abi.TxHeader) { h.Flags = abi.TxWithSack }), ""),
			reason: "tx_malformed"},
		{name: "blocks cut short", frame: sackFrame(header(nil), blocks(1, [2]uint32{2000, 3000}))[:abi.HeaderRoom+27],
			reason: "tx_malformed"},
		{name: "blocks and more", frame: append(sackFrame(header(nil), blocks(1, [2]uint32{2000, 3000})), 0),
			reason: "tx_malformed"},
		{name: "blocks not announced", frame: append(tapFrame(header(nil), ""), make([]byte, 28)...),
			reason: "tx_malformed"},
		{name: "slot of the rings", frame: but(func(h *abi.TxHeader) { h.Slot = abi.FirstSlot - 1 }), reason: "tx_no_conn"},
		{name: "slot of another application", frame: but(func(h *abi.TxHeader) { h.Slot = abi.AppSlots }), reason: "tx_no_conn"},
		{name: "slot far away", frame: but(func(h *abi.TxHeader) { h.Slot = 1<<32 - 1 }), reason: "tx_no_conn"},
		{name: "slot never used", frame: but(func(h *abi.TxHeader) { h.Slot = slot + 1 }), reason: "tx_state"},
		{name: "earlier connection", frame: but(func(h *abi.TxHeader) { h.Generation = connGen - 1 }), reason: "tx_generation"},
		{name: "no published map", frame: good, reason: "tx_no_conn", set: func(t *testing.T, l *lab) {
			if err := l.RemoveApp(app); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := active(t, nil)
			if c.set != nil {
				c.set(t, l)
			}
			before, tap := l.published(t), tapIf
			if c.tap == -1 {
				tap = l.ifindex
			}
			r := l.run(t, l.Egress, tap, 0, c.frame, 0)
			if r.verdict != verdictDrop || r.counted != c.reason {
				t.Errorf("verdict %d, counted %q, want %q", r.verdict, r.counted, c.reason)
			}
			sameConn(t, "record", r.after, r.before)
			if r.pub != before {
				t.Errorf("published %+v", r.pub)
			}
		})
	}
}

// Refusals that the connection's owner is told.
func TestEgressRefused(t *testing.T) {
	hop := func(set func(*abi.Hop)) func(*testing.T, *lab) {
		return func(t *testing.T, l *lab) {
			h := abi.Hop{Valid: 1, Port: portNo, Mtu: 1500}
			set(&h)
			if err := l.SetHop(hopNo, h); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name   string
		conn   func(*abi.Conn)
		set    func(*testing.T, *lab)
		h      func(*abi.TxHeader)
		data   string
		reason abi.DropReason
	}{
		{name: "not SND.NXT: later", h: func(h *abi.TxHeader) { h.Seq = 5501 }, data: "x", reason: abi.DropReasonTxSeq},
		{name: "not SND.NXT: sent before", h: func(h *abi.TxHeader) { h.Seq = 5499 }, data: "x", reason: abi.DropReasonTxSeq},
		{name: "beyond the peer's window", conn: func(c *abi.Conn) { c.SndWnd = 503 }, data: "data", reason: abi.DropReasonTxWindow},
		{name: "beyond the fixed window", data: "data", reason: abi.DropReasonTxWindow,
			conn: func(c *abi.Conn) { c.SndWnd, c.SndUna = 1<<30, 5504-abi.FixedWindow-1+1<<32 }},
		{name: "larger than the MSS", data: strings.Repeat("x", 1449), reason: abi.DropReasonTxMtu},
		{name: "larger than the MTU", data: "data", set: hop(func(h *abi.Hop) { h.Mtu = 55 }), reason: abi.DropReasonTxMtu},
		{name: "no next hop", data: "data", set: hop(func(h *abi.Hop) { h.Valid = 0 }), reason: abi.DropReasonTxNoHop},
		{name: "next hop in a VLAN", data: "data", set: hop(func(h *abi.Hop) { h.Vlan = 7 }), reason: abi.DropReasonTxNoHop},
		{name: "next hop out of range", data: "data", conn: func(c *abi.Conn) { c.Hop = abi.MaxHops }, reason: abi.DropReasonTxNoHop},
		{name: "again: acknowledged already", h: func(h *abi.TxHeader) { h.Seq, h.Flags = 4999, abi.TxRetransmit },
			data: "x", reason: abi.DropReasonTxSeq},
		{name: "again: never sent", h: func(h *abi.TxHeader) { h.Seq, h.Flags = 5499, abi.TxRetransmit },
			data: "xx", reason: abi.DropReasonTxSeq},
		{name: "again: nothing", h: func(h *abi.TxHeader) { h.Seq, h.Flags = 5000, abi.TxRetransmit }, reason: abi.DropReasonTxSeq},
		{name: "again: larger than the MSS", h: func(h *abi.TxHeader) { h.Seq, h.Flags = 5000, abi.TxRetransmit },
			conn: func(c *abi.Conn) { c.Mss = 3 }, data: "data", reason: abi.DropReasonTxMtu},
		{name: "probe with data", h: func(h *abi.TxHeader) { h.Flags = abi.TxProbe }, data: "x", reason: abi.DropReasonTxMalformed},
		{name: "frozen", set: func(t *testing.T, l *lab) { l.enter(t, abi.FlowStateHold) }, data: "data", reason: abi.DropReasonTxState},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := active(t, c.conn)
			if c.set != nil {
				c.set(t, l)
			}
			before := l.published(t)
			r := l.write(t, tapFrame(header(c.h), c.data))
			if r.verdict != verdictDrop || r.counted != c.reason.String() {
				t.Errorf("verdict %d, counted %q, want %q", r.verdict, r.counted, c.reason)
			}
			sameConn(t, "record", r.after, r.before)
			before.TxRefused++
			before.TxReason = uint32(c.reason)
			if r.pub != before {
				t.Errorf("published:\n got %+v\nwant %+v", r.pub, before)
			}
		})
	}
}

// =============================================================================
// What goes out
// =============================================================================

// A sending is a tap frame that is sent, the segment it becomes, and what it
// changes.
type sending struct {
	name  string
	conn  func(*abi.Conn)
	h     func(*abi.TxHeader)
	data  string
	sack  *abi.TxSack // written in place of data
	wire  func(*sent) // changes to the ordinary segment
	after func(*abi.Conn)
	pub   func(*abi.Pub)
}

// run compares with the ordinary segment: no data, everything acknowledged.
func (s sending) run(t *testing.T) {
	l := active(t, s.conn)
	published := l.published(t)
	frame := tapFrame(header(s.h), s.data)
	if s.sack != nil {
		frame = sackFrame(header(s.h), *s.sack)
	}
	r := l.write(t, frame)
	if r.verdict != verdictRedirect || r.counted != "" {
		t.Fatalf("verdict %d, counted %q", r.verdict, r.counted)
	}
	got, err := parseSent(r.frame)
	if err != nil {
		t.Fatal(err)
	}
	checkOptions(t, got.opts, r.before)
	got.opts = nil
	want := sent{dmac: peerMAC, smac: usMAC, tos: 0x10, ttl: 63, id: 40, sport: usPort, dport: peerPort,
		seq: 5500, ack: 1000, flags: ack, win: 10000, data: s.data}
	if s.wire != nil {
		s.wire(&want)
	}
	if !bytes.Equal(got.sack, want.sack) {
		t.Errorf("options behind the usual: % x, want % x", got.sack, want.sack)
	}
	if got.id != want.id || got.data != want.data || fieldsOf(got) != fieldsOf(want) {
		t.Errorf("on the wire:\n got %+v\nwant %+v", got, want)
	}
	after := r.before
	after.SegsOut++
	after.IpId++
	if s.after != nil {
		s.after(&after)
	}
	sameConn(t, "record", r.after, after)
	if s.pub != nil {
		s.pub(&published)
	}
	if r.pub != published {
		t.Errorf("published:\n got %+v\nwant %+v", r.pub, published)
	}
}

// fieldsOf makes segments comparable.
func fieldsOf(s sent) any {
	return struct {
		dmac, smac   [6]byte
		tos, ttl     byte
		sport, dport uint16
		seq, ack     uint32
		flags        byte
		win          uint16
	}{s.dmac, s.smac, s.tos, s.ttl, s.sport, s.dport, s.seq, s.ack, s.flags, s.win}
}

// checkOptions: timestamps from the clock, or twelve NOPs.
func checkOptions(t *testing.T, opts []byte, c abi.Conn) {
	t.Helper()
	if c.Flags&abi.ConnTimestamps == 0 {
		if !bytes.Equal(opts, bytes.Repeat([]byte{1}, 12)) {
			t.Errorf("options % x, want NOPs", opts)
		}
		return
	}
	ecr := c.TsRecent
	if c.Flags&abi.ConnTsValid == 0 {
		ecr = 0
	}
	now := uint32(monotonic()/1e6) + c.TsOffset
	val := binary.BigEndian.Uint32(opts[4:])
	if !bytes.Equal(opts[:4], ts(0, 0)[:4]) || now-val > 1000 || binary.BigEndian.Uint32(opts[8:]) != ecr {
		t.Errorf("options % x, want TSval about %x, TSecr %x", opts, now, ecr)
	}
}

func runSendings(t *testing.T, sendings []sending) {
	for _, s := range sendings {
		t.Run(s.name, s.run)
	}
}

func TestSendNewData(t *testing.T) {
	timed := func(n uint32) func(*abi.Conn) {
		return func(c *abi.Conn) {
			c.SndNxt, c.BytesOut, c.RttStartNs, c.RttSeq = 5500+n, uint64(n), 1, 5500+n
		}
	}
	next := func(n uint32) func(*abi.Pub) { return func(p *abi.Pub) { p.SndNxt = 5500 + n } }
	var sendings []sending
	for _, n := range []int{1, 2, 3, 64, 1447, 1448} {
		sendings = append(sendings, sending{name: strings.Repeat("I", n%10) + " octets",
			data: strings.Repeat("\xfe\x80\x01", n)[:n], after: timed(uint32(n)), pub: next(uint32(n))})
	}
	runSendings(t, append(sendings, []sending{
		{name: "pushed", data: "x", h: func(h *abi.TxHeader) { h.Flags = abi.TxPush },
			wire: func(s *sent) { s.flags |= psh }, after: timed(1), pub: next(1)},
		{name: "no timestamps", conn: noStamps, data: "x", after: timed(1), pub: next(1)},
		{name: "no timestamp seen", conn: func(c *abi.Conn) { c.Flags = abi.ConnTimestamps }, data: "x",
			after: timed(1), pub: next(1)},
		{name: "one round trip at a time", conn: func(c *abi.Conn) { c.RttStartNs, c.RttSeq = 1, 5500 }, data: "x",
			after: func(c *abi.Conn) { c.SndNxt, c.BytesOut = 5501, 1 }, pub: next(1)},
		{name: "up to the window", conn: func(c *abi.Conn) { c.SndWnd = 504 }, data: "data",
			after: timed(4), pub: next(4)},
		{name: "up to the fixed window", data: "data", after: timed(4), pub: next(4),
			conn: func(c *abi.Conn) { c.SndWnd, c.SndUna = 1<<30, 5504+(1<<32-abi.FixedWindow) }},
		{name: "around zero", conn: func(c *abi.Conn) { c.SndUna, c.SndNxt = 0xfffffff0, 0xfffffffe },
			h: func(h *abi.TxHeader) { h.Seq = 0xfffffffe }, data: "data",
			wire:  func(s *sent) { s.seq = 0xfffffffe },
			after: func(c *abi.Conn) { c.SndNxt, c.BytesOut, c.RttStartNs, c.RttSeq = 2, 4, 1, 2 },
			pub:   func(p *abi.Pub) { p.SndNxt = 2 }},
		{name: "asks to be told", h: func(h *abi.TxHeader) { h.Flags = abi.TxNotify }, data: "x", pub: next(1),
			after: func(c *abi.Conn) { timed(1)(c); c.Flags |= abi.ConnNotifyAck }},
	}...))
}

func TestSendWithoutNewData(t *testing.T) {
	timing := func(c *abi.Conn) { c.RttStartNs, c.RttSeq = 1, 5500 }
	again := func(seq uint32) func(*abi.TxHeader) {
		return func(h *abi.TxHeader) { h.Seq, h.Flags = seq, abi.TxRetransmit }
	}
	karn := func(c *abi.Conn) {
		c.Retrans, c.RttStartNs, c.Recover = 1, 0, 5500
		c.Flags |= abi.ConnRecovery
	}
	// More was sent since recovery began.
	recovering := func(c *abi.Conn) { c.Flags |= abi.ConnRecovery; c.Recover = 5200 }
	runSendings(t, []sending{
		{name: "pure ACK", conn: timing},
		{name: "pure ACK, whatever sequence it names", h: func(h *abi.TxHeader) { h.Seq = 1 }},
		{name: "pure ACK with a closed window", conn: func(c *abi.Conn) { c.SndWnd = 0 }},
		{name: "retransmission of the first", conn: timing, h: again(5000), data: "data", after: karn,
			wire: func(s *sent) { s.seq = 5000 }},
		{name: "retransmission of the last", conn: timing, h: again(5496), data: "data", after: karn,
			wire: func(s *sent) { s.seq = 5496 }},
		{name: "retransmission into a closed window", conn: func(c *abi.Conn) { c.SndWnd = 0 }, h: again(5000),
			data: "data", after: karn, wire: func(s *sent) { s.seq = 5000 }},
		{name: "retransmission in recovery", conn: recovering, h: again(5000), data: "data",
			wire:  func(s *sent) { s.seq = 5000 },
			after: func(c *abi.Conn) { c.Retrans = 1 }},
		{name: "keepalive or window probe", h: func(h *abi.TxHeader) { h.Flags = abi.TxProbe },
			wire: func(s *sent) { s.seq = 4999 }},
		{name: "asks to be told, without data", h: func(h *abi.TxHeader) { h.Flags = abi.TxNotify },
			after: func(c *abi.Conn) { c.Flags |= abi.ConnNotifyAck }},
	})
}

func TestAcknowledge(t *testing.T) {
	delivered := func(c *abi.Conn) { c.RcvHigh = 3000 }
	acks := func(n uint32) func(*abi.TxHeader) { return func(h *abi.TxHeader) { h.Ack = n } }
	runSendings(t, []sending{
		{name: "what was delivered", conn: delivered, h: acks(3000),
			wire:  func(s *sent) { s.ack = 3000 },
			after: func(c *abi.Conn) { c.RcvNxt, c.RcvAdv = 3000, 13000 }, pub: func(p *abi.Pub) { p.RcvNxt = 3000 }},
		{name: "part of it", conn: delivered, h: acks(1001),
			wire:  func(s *sent) { s.ack = 1001 },
			after: func(c *abi.Conn) { c.RcvNxt, c.RcvAdv = 1001, 11001 }, pub: func(p *abi.Pub) { p.RcvNxt = 1001 }},
		{name: "what never came", conn: delivered, h: acks(3001),
			wire:  func(s *sent) { s.ack = 3000 },
			after: func(c *abi.Conn) { c.RcvNxt, c.RcvAdv = 3000, 13000 }, pub: func(p *abi.Pub) { p.RcvNxt = 3000 }},
		{name: "less than before", h: acks(900), wire: func(s *sent) { s.win = 9900 }},
		{name: "around zero", h: acks(2),
			conn: func(c *abi.Conn) { c.RcvNxt, c.RcvHigh, c.RcvAdv = 0xfffffff0, 2, 100 },
			wire: func(s *sent) { s.ack = 2 }, pub: func(p *abi.Pub) { p.RcvNxt = 2 },
			after: func(c *abi.Conn) { c.RcvNxt, c.RcvAdv = 2, 10002 }},
	})
}

func TestSendSack(t *testing.T) {
	// The peer's 1000 … are missing; 3000 to 9000 and more came.
	delivered := func(c *abi.Conn) { c.RcvHigh, c.Flags = 9000, c.Flags|abi.ConnSack }
	without := func(flags uint32) func(*abi.Conn) {
		return func(c *abi.Conn) { delivered(c); c.Flags &^= flags }
	}
	a, b, c := [2]uint32{7000, 9000}, [2]uint32{3000, 4001}, [2]uint32{5000, 6000}
	sacks := func(name string, conn func(*abi.Conn), s abi.TxSack, edges ...[2]uint32) sending {
		return sending{name: name, conn: conn, sack: &s, wire: func(s *sent) { s.sack = sackOption(edges...) }}
	}
	acking := sacks("acknowledges, too", delivered, blocks(1, a), a)
	acking.h = func(h *abi.TxHeader) { h.Ack = 2000 }
	acking.wire = func(s *sent) { s.ack, s.sack = 2000, sackOption(a) }
	acking.after = func(c *abi.Conn) { c.RcvNxt, c.RcvAdv = 2000, 12000 }
	acking.pub = func(p *abi.Pub) { p.RcvNxt = 2000 }
	runSendings(t, []sending{
		sacks("one block", delivered, blocks(1, a), a),
		sacks("two blocks", delivered, blocks(2, a, b), a, b),
		sacks("three blocks", delivered, blocks(3, a, b, c), a, b, c),
		sacks("what lies behind the last block does not matter", delivered, blocks(1, a, [2]uint32{1, 1}), a),
		sacks("no timestamps", without(abi.ConnTimestamps), blocks(3, a, b, c), a, b, c),
		sacks("not negotiated", without(abi.ConnSack), blocks(3, a, b, c)),
		sacks("neither", without(abi.ConnSack|abi.ConnTimestamps), blocks(1, a)),
		sacks("one octet behind the hole of one octet", delivered, blocks(1, [2]uint32{1001, 1002}), [2]uint32{1001, 1002}),
		acking,
	})
}

// Blocks that say what cannot be. Refused or not does not depend on whether the
// option was negotiated.
func TestSackRefused(t *testing.T) {
	good := [2]uint32{2000, 3000}
	for _, c := range []struct {
		name string
		sack abi.TxSack
		ack  uint32
	}{
		{"no block", blocks(0, good), 1000},
		{"four blocks", blocks(4, good, good, good), 1000},
		{"very many blocks", blocks(1<<32-1, good, good, good), 1000},
		{"empty", blocks(1, [2]uint32{2000, 2000}), 1000},
		{"end before start", blocks(1, [2]uint32{3000, 2000}), 1000},
		{"starts at the acknowledgement", blocks(1, [2]uint32{1000, 2000}), 1000},
		{"starts at the new acknowledgement", blocks(1, good), 2000},
		{"starts at the acknowledgement that stands", blocks(1, [2]uint32{1000, 2000}), 900},
		{"starts before the acknowledgement", blocks(1, [2]uint32{999, 2000}), 1000},
		{"ends beyond what came", blocks(1, [2]uint32{2000, 9001}), 1000},
		{"longer than half the space", blocks(1, [2]uint32{2000, 999}), 1000},
		{"far away", blocks(1, [2]uint32{1000 + 1<<31, 1001 + 1<<31}), 1000},
		{"the second", blocks(2, good, [2]uint32{500, 600}), 1000},
		{"the third", blocks(3, good, good, [2]uint32{8999, 9001}), 1000},
	} {
		for _, flags := range []uint32{0, abi.ConnSack} {
			t.Run(c.name, func(t *testing.T) {
				l := active(t, func(c *abi.Conn) { c.RcvHigh, c.Flags = 9000, c.Flags|flags })
				before := l.published(t)
				r := l.write(t, sackFrame(header(func(h *abi.TxHeader) { h.Ack = c.ack }), c.sack))
				if r.verdict != verdictDrop || r.counted != "tx_seq" {
					t.Errorf("verdict %d, counted %q", r.verdict, r.counted)
				}
				sameConn(t, "record", r.after, r.before)
				before.TxRefused, before.TxReason = 1, uint32(abi.DropReasonTxSeq)
				if r.pub != before {
					t.Errorf("published %+v", r.pub)
				}
			})
		}
	}
}

// A probe is never more than a probe: blocks on one would go out as they are.
func TestProbeHasNoSack(t *testing.T) {
	l := active(t, func(c *abi.Conn) { c.RcvHigh, c.Flags = 9000, c.Flags|abi.ConnSack })
	probe := header(func(h *abi.TxHeader) { h.Flags = abi.TxProbe })
	r := l.write(t, sackFrame(probe, blocks(1<<32-1, [2]uint32{2000, 3000})))
	if r.verdict != verdictDrop || r.counted != "tx_malformed" {
		t.Errorf("verdict %d, counted %q", r.verdict, r.counted)
	}
	sameConn(t, "record", r.after, r.before)
}

func TestOfferWindow(t *testing.T) {
	offers := func(n uint32) func(*abi.TxHeader) { return func(h *abi.TxHeader) { h.Wnd = n } }
	edge := func(n uint32) func(*abi.Conn) { return func(c *abi.Conn) { c.RcvAdv = n } }
	scaled := func(c *abi.Conn) { c.RcvWscale = 7 }
	runSendings(t, []sending{
		{name: "more room", h: offers(20000), wire: func(s *sent) { s.win = 20000 }, after: edge(21000)},
		// What the kernel had promised stays acceptable, but the peer is told.
		{name: "less room than promised", h: offers(10), wire: func(s *sent) { s.win = 10 }},
		{name: "no room, whatever was promised", h: offers(0), wire: func(s *sent) { s.win = 0 }},
		{name: "no room, nothing promised", conn: edge(1000), h: offers(0), wire: func(s *sent) { s.win = 0 }},
		{name: "scaled", conn: scaled, h: offers(128 * 200), wire: func(s *sent) { s.win = 200 }, after: edge(1000 + 128*200)},
		{name: "scaled, rounded down", conn: scaled, h: offers(128*200 + 127), wire: func(s *sent) { s.win = 200 },
			after: edge(1000 + 128*200)},
		// On the wire the edge falls short by less than a unit, inside it stands.
		{name: "scaled, promise not a multiple", conn: scaled, h: offers(10000), wire: func(s *sent) { s.win = 10000 / 128 }},
		{name: "field full", h: offers(70000), wire: func(s *sent) { s.win = 65535 }, after: edge(1000 + 65535)},
		{name: "more than a window can be", conn: func(c *abi.Conn) { c.RcvWscale = 14 }, h: offers(1<<32 - 1),
			wire: func(s *sent) { s.win = 65535 }, after: edge(1000 + 65535<<14)},
		{name: "room counted from an older acknowledgement", h: func(h *abi.TxHeader) { h.Ack, h.Wnd = 900, 12000 },
			wire: func(s *sent) { s.win = 11900 }, after: edge(12900)},
		{name: "older acknowledgement, room used up", conn: edge(1000),
			h: func(h *abi.TxHeader) { h.Ack, h.Wnd = 900, 50 }, wire: func(s *sent) { s.win = 0 }},
	})
}

// The device map lost its entry after the checks: the owner must know.
func TestEgressNoDevice(t *testing.T) {
	l := active(t, nil)
	if err := l.Ports.Delete(uint32(portNo)); err != nil {
		t.Fatal(err)
	}
	r := l.write(t, tapFrame(header(nil), "data"))
	if r.verdict != verdictDrop || r.counted != "redirect_tx" {
		t.Errorf("verdict %d, counted %q", r.verdict, r.counted)
	}
	if r.pub.TxErrors != 1 || r.pub.TxErrno != 19 || r.pub.Events != abi.EventTxError || r.after.SndNxt != 5504 {
		t.Errorf("published %+v", r.pub)
	}
}

// =============================================================================
// Credit
// =============================================================================

func TestReportConsumed(t *testing.T) {
	const deliveredAt = 200
	const step = abi.RingSize / 16 // CREDIT_STEP
	for _, c := range []struct {
		name           string
		ring           uint32
		before, report uint32
		want           uint32
	}{
		{"forward", ringNo, 0, 150, 150},
		{"a step", ringNo, 3, 3 + step, 3 + step},
		{"less than a step", ringNo, 3, 3 + step - 1, 3},
		{"all", ringNo, 3, deliveredAt, deliveredAt},
		{"more than was delivered", ringNo, 3, deliveredAt + 1, 3},
		{"back", ringNo, 150, 149, 150},
		{"around zero", ringNo, 0xfffffff0, 150, 150},
		{"of no ring", abi.MaxRings, 3, 150, 3},
		{"of another application's ring", abi.MaxRings + ringNo, 3, 150, 3},
		{"of no ring at all", 1<<32 - 1, 3, 150, 3},
	} {
		for _, kind := range []struct {
			name   string
			flags  uint32
			slot   uint32
			reason string
		}{
			{"with data", 0, slot, ""},
			{"alone", abi.TxCredit, slot, "tx_credit_only"},
			{"alone, of no slot", abi.TxCredit, 0, "tx_credit_only"},
			{"in a refused frame", 0, 0, "tx_no_conn"},
		} {
			t.Run(c.name+"/"+kind.name, func(t *testing.T) {
				l := active(t, nil)
				deliver(t, l, deliveredAt)
				xsk := uint32(app*abi.MaxRings + ringNo)
				if err := l.Rings.Put(xsk, abi.Ring{Consumed: c.before}); err != nil {
					t.Fatal(err)
				}
				r := l.write(t, tapFrame(header(func(h *abi.TxHeader) {
					h.Ring, h.Consumed, h.Flags, h.Slot = c.ring, c.report, kind.flags, kind.slot
				}), ""))
				if r.counted != kind.reason {
					t.Errorf("counted %q, want %q", r.counted, kind.reason)
				}
				var got abi.Ring
				if err := l.Rings.Lookup(xsk, &got); err != nil {
					t.Fatal(err)
				}
				if got.Consumed != c.want {
					t.Errorf("consumed %d, want %d", got.Consumed, c.want)
				}
			})
		}
	}
}

// deliver has n frames delivered to the standard ring.
func deliver(t *testing.T, l *lab, n int) {
	t.Helper()
	for range n {
		if r := l.arrive(t, data(1)); r.verdict != verdictRedirect {
			t.Fatalf("not delivered: %q", r.counted)
		}
	}
}

// A full ring takes frames again as soon as the library reports.
func TestCreditReturns(t *testing.T) {
	l := active(t, nil)
	consumed := uint32(1<<32 - abi.RingSize + 1)
	if err := l.Rings.Put(uint32(app*abi.MaxRings+ringNo), abi.Ring{Consumed: consumed}); err != nil {
		t.Fatal(err)
	}
	deliver(t, l, 1)
	if r := l.arrive(t, data(1)); r.counted != "no_credit" {
		t.Fatalf("counted %q", r.counted)
	}
	l.write(t, tapFrame(header(func(h *abi.TxHeader) { h.Flags, h.Consumed = abi.TxCredit, 1 }), ""))
	deliver(t, l, 1)
}
