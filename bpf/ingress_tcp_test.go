// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// A step is one segment that arrives at an ACTIVE connection, and everything
// that must come of it.
type step struct {
	name string
	conn func(*abi.Conn) // changes to the standard connection
	seg  tcp

	kind   abi.RxKind // delivered as; 0: dropped
	reason string     // counted
	meta   func(*abi.RxMeta)
	// Changes to the record. A segment that passes the checks is counted:
	// unless rejected is set, SegsIn grows by one.
	after    func(*abi.Conn)
	rejected bool
	pub      func(*abi.Pub) // changes to the published words
}

func monotonic() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return uint64(now.Nano())
}

// Changes that many tests share.
var (
	limited  = func(c *abi.Conn) { c.LastLimitNs = monotonic() + uint64(time.Second) }
	noStamps = func(c *abi.Conn) { c.Flags = 0 }
	ctlEvent = func(p *abi.Pub) { p.Events = abi.EventCtl }
)

func (s step) run(t *testing.T) {
	l := active(t, s.conn)
	before := l.published(t)
	r := l.arrive(t, s.seg)
	s.checkDelivery(t, l, r)
	if r.counted != s.reason {
		t.Errorf("counted %q, want %q", r.counted, s.reason)
	}
	after := r.before
	if !s.rejected {
		after.SegsIn++
		if r.after.LastRxNs == r.before.LastRxNs {
			t.Error("last_rx_ns did not move")
		}
	}
	if s.after != nil {
		s.after(&after)
	}
	sameConn(t, "record", r.after, after)
	if s.pub != nil {
		s.pub(&before)
	}
	if r.pub != before {
		t.Errorf("published:\n got %+v\nwant %+v", r.pub, before)
	}
}

func (s step) checkDelivery(t *testing.T, l *lab, r result) {
	t.Helper()
	verdict, delivered := uint32(verdictDrop), uint32(0)
	if s.kind != 0 {
		verdict, delivered = verdictRedirect, 1
	}
	if r.verdict != verdict {
		t.Errorf("verdict %d, want %d (counted %q)", r.verdict, verdict, r.counted)
	}
	if d := l.ring(t, ringNo).Delivered; d != delivered {
		t.Errorf("delivered %d, want %d", d, delivered)
	}
	if s.kind == 0 || r.meta == nil {
		return
	}
	frame := s.seg.frame()
	want := abi.RxMeta{Slot: slot, Kind: uint16(s.kind), Generation: connGen, Seq: s.seg.seq}
	switch s.kind {
	case abi.RxKindData:
		want.Offset = uint16(len(frame) - s.seg.trailer - len(s.seg.data))
		want.Length = uint16(len(s.seg.data))
	case abi.RxKindCtl:
		want.Length = uint16(len(frame))
	}
	if s.meta != nil {
		s.meta(&want)
	}
	if *r.meta != want {
		t.Errorf("metadata\n got %+v\nwant %+v", *r.meta, want)
	}
	if string(r.frame) != string(frame) {
		t.Error("the frame was changed")
	}
}

func runSteps(t *testing.T, steps []step) {
	for _, s := range steps {
		t.Run(s.name, s.run)
	}
}

// data is the next segment in order, of n octets.
func data(n int) tcp {
	return tcp{seq: 1000, ack: 5000, flags: ack | psh, win: 10000, opts: ts(100, 0), data: strings.Repeat("d", n)}
}

// pure is an acknowledgement without data.
func pure(ackNo uint32, win uint16) tcp {
	return tcp{seq: 1000, ack: ackNo, flags: ack, win: win, opts: ts(100, 0)}
}

func with(s tcp, set func(*tcp)) tcp { set(&s); return s }

func at(s tcp, seq uint32) tcp { s.seq = seq; return s }

func flagged(s tcp, flags byte) tcp { s.flags |= flags; return s }

func received(n uint32) func(*abi.Conn) {
	return func(c *abi.Conn) { c.RcvHigh = 1000 + n; c.BytesIn = uint64(n) }
}

// ahead is what n octets beyond a hole, from seq, do.
func ahead(seq, n uint32) func(*abi.Conn) {
	return func(c *abi.Conn) { c.RcvHigh, c.BytesIn, c.SndWl1 = seq+n, uint64(n), seq }
}

// =============================================================================
// The segment itself
// =============================================================================

func TestMalformed(t *testing.T) {
	malformed := func(name string, s tcp) step {
		return step{name: name, seg: s, reason: "malformed", rejected: true}
	}
	runSteps(t, []step{
		malformed("data offset 4", with(data(3), func(s *tcp) { s.doff = 4 })),
		malformed("data offset beyond the datagram", with(data(3), func(s *tcp) { s.doff = 15 })),
		malformed("datagram longer than the frame", with(data(3), func(s *tcp) { s.ipLen = 1 })),
		malformed("datagram shorter than its headers", with(data(3), func(s *tcp) { s.ipLen = -10 })),
		malformed("datagram shorter than IPv4", with(data(0), func(s *tcp) { s.ipLen = -40 })),
		{name: "padding behind the datagram is not payload", kind: abi.RxKindData,
			seg: with(data(3), func(s *tcp) { s.trailer = 6 }), after: received(3)},
		{name: "padded pure ACK has no payload", reason: "consumed",
			seg:   with(pure(5000, 9999), func(s *tcp) { s.trailer = 6 }),
			after: func(c *abi.Conn) { c.SndWnd = 9999 }, pub: func(p *abi.Pub) { p.SndLimit = 14999 }},
	})
}

func TestChecksum(t *testing.T) {
	verify := func(c *abi.Conn) { c.Flags |= abi.ConnVerifyCsum }
	var steps []step
	for _, n := range []int{1, 2, 3, 4, 447, 448, 449, 480, 1000, 1447, 1448, 1600} {
		good := data(n)
		good.data = strings.Repeat("\xff\x01\x7f", n)[:n]
		bad := with(good, func(s *tcp) { s.badSum = true })
		name := strings.Repeat("I", n%10) + " octets "
		steps = append(steps,
			step{name: name + "right", conn: verify, seg: good, kind: abi.RxKindData, after: received(uint32(n))},
			step{name: name + "wrong", conn: verify, seg: bad, reason: "checksum", rejected: true},
			step{name: name + "wrong, not verified", seg: bad, kind: abi.RxKindData, after: received(uint32(n))})
	}
	steps = append(steps,
		step{name: "pure ACK", conn: verify, seg: pure(5000, 10000), reason: "consumed",
			after: func(c *abi.Conn) { c.DupAcks = 1 }},
		step{name: "padding is not summed", conn: verify, kind: abi.RxKindData, after: received(3),
			seg: with(data(3), func(s *tcp) { s.trailer = 5 })})
	runSteps(t, steps)
}

func TestVLAN(t *testing.T) {
	l := active(t, nil)
	key := l.key()
	key.Vlan = 7
	if err := l.SetFlow(key, l.index()); err != nil {
		t.Fatal(err)
	}
	defer l.DeleteFlow(key)
	r := l.arrive(t, with(data(3), func(s *tcp) { s.vlan = 7 }))
	if r.meta == nil || r.meta.Offset != 18+20+32 || r.meta.Length != 3 {
		t.Errorf("meta %+v, counted %q", r.meta, r.counted)
	}
}

func TestTimestampPlaces(t *testing.T) {
	newer := func(c *abi.Conn) { received(1)(c); c.TsRecent = 200 }
	stamp := []byte{8, 10, 0, 0, 0, 200, 0, 0, 0, 0}
	opts := func(parts ...[]byte) tcp {
		return with(data(1), func(s *tcp) {
			s.opts = nil
			for _, p := range parts {
				s.opts = append(s.opts, p...)
			}
			for len(s.opts)%4 != 0 {
				s.opts = append(s.opts, 0)
			}
		})
	}
	found := func(name string, s tcp) step { return step{name: name, seg: s, kind: abi.RxKindData, after: newer} }
	missed := func(name string, s tcp) step {
		return step{name: name, seg: s, kind: abi.RxKindData, after: received(1)}
	}
	sack := []byte{5, 10, 0, 0, 0, 0, 0, 0, 0, 0}
	runSteps(t, []step{
		found("usual", opts([]byte{1, 1}, stamp)),
		found("usual, then SACK", opts([]byte{1, 1}, stamp, []byte{1, 1}, sack)),
		found("first", opts(stamp)),
		found("after SACK", opts([]byte{1, 1}, sack, []byte{1, 1}, stamp)),
		found("last of 40 octets", opts(sack, sack, sack, stamp)),
		found("after an option nobody knows", opts([]byte{254, 5, 9, 9, 9}, stamp)),
		missed("none", opts()),
		missed("after the end of options", opts([]byte{0}, stamp)),
		missed("wrong length", opts([]byte{8, 9, 0, 0, 0, 200, 0, 0, 0, 0})),
		missed("option of length 0", opts([]byte{254, 0}, stamp)),
		missed("option of length 1", opts([]byte{254, 1}, stamp)),
		missed("option longer than the header", opts([]byte{254, 200}, stamp)),
		missed("cut by the end of the header", opts([]byte{1, 1, 1, 1, 1, 1, 1, 1}, []byte{8, 10, 0, 0})),
		{name: "not negotiated", conn: noStamps, seg: opts(stamp), kind: abi.RxKindData, after: received(1)},
	})
}

// =============================================================================
// PAWS: RFC 7323 5.3 R1
// =============================================================================

func TestCheckPaws(t *testing.T) {
	old := with(data(3), func(s *tcp) { s.opts = ts(99, 0) })
	runSteps(t, []step{
		{name: "older is answered", seg: old, kind: abi.RxKindProbe, reason: "paws", rejected: true},
		{name: "older, answered just now", conn: limited, seg: old, reason: "rate_limit", rejected: true},
		{name: "older by half the space", conn: func(c *abi.Conn) { c.TsRecent = 1 << 31 },
			seg:  with(data(3), func(s *tcp) { s.opts = ts(1, 0) }),
			kind: abi.RxKindProbe, reason: "paws", rejected: true},
		{name: "wrapped is newer", conn: func(c *abi.Conn) { c.TsRecent = 0xffffff00 },
			seg: with(data(3), func(s *tcp) { s.opts = ts(5, 0) }), kind: abi.RxKindData,
			after: func(c *abi.Conn) { received(3)(c); c.TsRecent = 5 }},
		{name: "equal is fine", seg: data(3), kind: abi.RxKindData, after: received(3)},
		{name: "no timestamp is fine", seg: with(data(3), func(s *tcp) { s.opts = nil }),
			kind: abi.RxKindData, after: received(3)},
		{name: "RST is not judged by it", seg: flagged(old, rst), kind: abi.RxKindCtl, rejected: true, pub: ctlEvent},
		{name: "nothing to compare with", conn: func(c *abi.Conn) { c.Flags = abi.ConnTimestamps },
			seg: with(data(3), func(s *tcp) { s.opts = ts(0x90000000, 0) }), kind: abi.RxKindData,
			after: func(c *abi.Conn) {
				received(3)(c)
				c.TsRecent = 0x90000000
				c.Flags |= abi.ConnTsValid
			}},
		{name: "24 days of silence", seg: old, kind: abi.RxKindData,
			conn:  func(c *abi.Conn) { c.LastRxNs = monotonic() - uint64(25*24*time.Hour) },
			after: func(c *abi.Conn) { received(3)(c); c.TsRecent = 99 }},
	})
}

// =============================================================================
// First, check sequence number
// =============================================================================

func TestCheckSequence(t *testing.T) {
	probe := func(name string, s tcp, reason string) step {
		return step{name: name, seg: s, kind: abi.RxKindProbe, reason: reason, rejected: true}
	}
	closed := func(c *abi.Conn) { c.RcvAdv = 1000 }
	acked := func(c *abi.Conn) { c.DupAcks = 1 }
	runSteps(t, []step{
		{name: "in order", seg: data(3), kind: abi.RxKindData, after: received(3)},
		{name: "out of order", seg: at(data(3), 2000), kind: abi.RxKindData,
			after: ahead(2000, 3)},
		{name: "last octet of the window", seg: at(data(1), 10999), kind: abi.RxKindData,
			after: ahead(10999, 1)},
		{name: "partly old", seg: at(data(5), 998), kind: abi.RxKindData, after: received(3),
			meta: func(m *abi.RxMeta) { m.Seq, m.Offset, m.Length = 1000, m.Offset+2, 3 }},
		{name: "partly beyond", seg: at(data(5), 10998), kind: abi.RxKindData,
			after: ahead(10998, 2),
			meta:  func(m *abi.RxMeta) { m.Length = 2 }},
		{name: "both", conn: func(c *abi.Conn) { c.RcvAdv = 1002 }, seg: at(data(5), 999), kind: abi.RxKindData,
			after: received(2), meta: func(m *abi.RxMeta) { m.Seq, m.Offset, m.Length = 1000, m.Offset+1, 2 }},
		{name: "delivered, not acknowledged yet", conn: func(c *abi.Conn) { c.RcvHigh = 1500 }, seg: data(3),
			kind: abi.RxKindData, after: func(c *abi.Conn) { c.BytesIn = 3 }},
		{name: "around zero", seg: at(data(5), 0xfffffffe), kind: abi.RxKindData,
			conn: func(c *abi.Conn) {
				c.RcvNxt, c.RcvHigh, c.SndWl1, c.RcvAdv = 0xfffffffe, 0xfffffffe, 0xfffffffe, 100
			},
			after: func(c *abi.Conn) { c.RcvHigh, c.BytesIn = 3, 5 }},
		probe("duplicate", at(data(3), 997), ""),
		{name: "duplicates are answered every time", conn: limited, seg: at(data(3), 990),
			kind: abi.RxKindProbe, rejected: true},
		probe("keepalive", at(pure(5000, 10000), 999), ""),
		{name: "keepalive, answered just now", conn: limited, seg: at(pure(5000, 10000), 999),
			reason: "rate_limit", rejected: true},
		probe("data beyond the window", at(data(3), 11000), "bad_seq"),
		probe("far beyond", at(data(3), 1000+1<<30), "bad_seq"),
		probe("empty beyond the window", at(pure(5000, 10000), 11001), "bad_seq"),
		{name: "beyond the window, answered just now", conn: limited, seg: at(data(3), 11000),
			reason: "rate_limit", rejected: true},
		{name: "empty at the right edge", seg: at(pure(5000, 10000), 11000), reason: "consumed",
			after: func(c *abi.Conn) { acked(c); c.SndWl1 = 11000 }},
		{name: "zero window, empty", conn: closed, seg: pure(5000, 10000), reason: "consumed", after: acked},
		{name: "zero window, one octet", conn: closed, seg: data(1), kind: abi.RxKindProbe, reason: "bad_seq",
			rejected: true},
		{name: "RST outside is not answered", seg: at(flagged(pure(5000, 0), rst), 11001), reason: "bad_seq",
			rejected: true},
		{name: "old RST is not answered", seg: at(flagged(pure(5000, 0), rst), 999), reason: "bad_seq",
			rejected: true},
	})
}

// =============================================================================
// Second, check the RST bit; fourth, check the SYN bit: RFC 5961
// =============================================================================

func TestCheckRst(t *testing.T) {
	reset := func(seq uint32) tcp { return tcp{seq: seq, flags: rst} }
	runSteps(t, []step{
		{name: "exact", seg: reset(1000), kind: abi.RxKindCtl, rejected: true, pub: ctlEvent},
		{name: "exact, data not acknowledged yet", conn: func(c *abi.Conn) { c.RcvHigh = 1700 }, seg: reset(1700),
			kind: abi.RxKindCtl, rejected: true, pub: ctlEvent},
		{name: "in the window", seg: reset(1001), kind: abi.RxKindProbe, rejected: true},
		{name: "in the window, answered just now", conn: limited, seg: reset(1001), reason: "rate_limit",
			rejected: true},
		{name: "exact is not limited", conn: limited, seg: reset(1000), kind: abi.RxKindCtl, rejected: true,
			pub: ctlEvent},
	})
}

func TestCheckSyn(t *testing.T) {
	runSteps(t, []step{
		{name: "in the window", seg: tcp{seq: 1000, flags: syn}, kind: abi.RxKindProbe, rejected: true},
		{name: "SYN ACK", seg: tcp{seq: 1000, ack: 5000, flags: syn | ack}, kind: abi.RxKindProbe, rejected: true},
		{name: "elsewhere", seg: tcp{seq: 77777, flags: syn}, kind: abi.RxKindProbe, reason: "bad_seq", rejected: true},
		{name: "answered just now", conn: limited, seg: tcp{seq: 1000, flags: syn}, reason: "rate_limit",
			rejected: true},
	})
}

// =============================================================================
// Fifth, check the ACK field
// =============================================================================

func TestCheckAck(t *testing.T) {
	acks := func(n uint32) tcp { return with(data(1), func(s *tcp) { s.ack = n }) }
	advanced := func(una uint32) func(*abi.Pub) {
		return func(p *abi.Pub) { p.SndUna, p.SndLimit = una, una+10000 }
	}
	runSteps(t, []step{
		{name: "no ACK bit", seg: with(data(1), func(s *tcp) { s.flags = psh }), reason: "no_ack_bit", rejected: true},
		{name: "beyond SND.NXT", seg: acks(5501), kind: abi.RxKindProbe, reason: "bad_ack", rejected: true},
		{name: "beyond SND.NXT, answered just now", conn: limited, seg: acks(5501), reason: "rate_limit",
			rejected: true},
		{name: "older than the largest window", seg: acks(5000 + (1<<32 - 10001)), kind: abi.RxKindProbe, reason: "bad_ack",
			rejected: true},
		{name: "as old as the largest window", seg: acks(5000 + (1<<32 - 10000)), kind: abi.RxKindData,
			after: received(1)},
		{name: "old: data yes, window no", kind: abi.RxKindData, after: received(1),
			seg: with(acks(4999), func(s *tcp) { s.win = 1 })},
		{name: "all", seg: acks(5500), kind: abi.RxKindData, pub: advanced(5500),
			after: func(c *abi.Conn) { received(1)(c); c.SndUna, c.SndWl2 = 5500, 5500 }},
		{name: "some", seg: acks(5001), kind: abi.RxKindData, pub: advanced(5001),
			after: func(c *abi.Conn) { received(1)(c); c.SndUna, c.SndWl2 = 5001, 5001 }},
	})
}

func TestUpdateRtt(t *testing.T) {
	// Long times, so that a busy machine makes no difference.
	seconds := func(n uint64) func(*abi.Conn) {
		return func(c *abi.Conn) { c.RttStartNs, c.RttSeq = monotonic()-n*1e9, 5300 }
	}
	for _, c := range []struct {
		name           string
		set            func(*abi.Conn)
		ack            uint32
		srtt, variance uint32 // expected, at least
		timing         bool   // still being timed afterwards
		srttM, varM    uint32 // at most
	}{
		{"first sample", seconds(10), 5300, 10e6, 5e6, false, 11e6, 5.5e6},
		{"not yet", seconds(10), 5299, 0, 0, true, 0, 0},
		{"nothing timed", nil, 5500, 0, 0, false, 0, 0},
		{"next sample: 7/8, 1/8 and 3/4, 1/4", func(c *abi.Conn) { seconds(18)(c); c.SrttUs, c.RttvarUs = 10e6, 4e6 },
			5500, 11e6, 5e6, false, 11.2e6, 5.3e6},
		{"sample of nothing is 1 us", func(c *abi.Conn) { c.RttStartNs, c.RttSeq = monotonic()+10e9, 5300 },
			5300, 1, 0, false, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := active(t, c.set)
			r := l.arrive(t, pure(c.ack, 10000))
			got := r.after
			if got.SrttUs < c.srtt || got.SrttUs > c.srttM || got.RttvarUs < c.variance || got.RttvarUs > c.varM {
				t.Errorf("srtt %d, rttvar %d", got.SrttUs, got.RttvarUs)
			}
			if timing := got.RttStartNs != 0; timing != c.timing {
				t.Errorf("still timing: %v", timing)
			}
			if c.srtt != 0 && (r.pub.SrttUs != got.SrttUs || r.pub.RttvarUs != got.RttvarUs) {
				t.Errorf("published %d, %d", r.pub.SrttUs, r.pub.RttvarUs)
			}
		})
	}
}

func TestUpdateWindow(t *testing.T) {
	limit := func(n uint32) func(*abi.Pub) { return func(p *abi.Pub) { p.SndLimit = n } }
	runSteps(t, []step{
		{name: "larger", seg: pure(5000, 20000), reason: "consumed", pub: limit(25000),
			after: func(c *abi.Conn) { c.SndWnd, c.MaxWnd = 20000, 20000 }},
		{name: "smaller", seg: pure(5000, 400), reason: "consumed", pub: limit(5400),
			after: func(c *abi.Conn) { c.SndWnd = 400 }},
		{name: "zero", seg: pure(5000, 0), reason: "consumed", pub: limit(5000),
			after: func(c *abi.Conn) { c.SndWnd = 0 }},
		{name: "scaled", conn: func(c *abi.Conn) { c.SndWscale = 3 }, seg: pure(5000, 1000), reason: "consumed",
			pub: limit(13000), after: func(c *abi.Conn) { c.SndWnd = 8000 }},
		{name: "scale above 14 is 14", conn: func(c *abi.Conn) { c.SndWscale = 31 }, seg: pure(5000, 1),
			reason: "consumed", pub: limit(5000 + 1<<14),
			after: func(c *abi.Conn) { c.SndWnd, c.MaxWnd = 1<<14, 1<<14 }},
		{name: "published up to the fixed window", conn: func(c *abi.Conn) { c.SndWscale = 10 },
			seg: pure(5000, 65535), reason: "consumed", pub: limit(5000 + abi.FixedWindow),
			after: func(c *abi.Conn) { c.SndWnd, c.MaxWnd = 65535<<10, 65535<<10 }},
		{name: "older sequence number", conn: func(c *abi.Conn) { c.SndWl1 = 1001 }, seg: pure(5000, 20000),
			reason: "consumed"},
		{name: "older acknowledgement", conn: func(c *abi.Conn) { c.SndWl2 = 5001 }, seg: pure(5000, 20000),
			reason: "consumed"},
		{name: "newer acknowledgement", seg: pure(5100, 10000), reason: "consumed",
			after: func(c *abi.Conn) { c.SndUna, c.SndWl2 = 5100, 5100 },
			pub:   func(p *abi.Pub) { p.SndUna, p.SndLimit = 5100, 15100 }},
	})
}

// RFC 5681 2: no data, ACK = SND.UNA, window unchanged, something in flight.
func TestDuplicateAcks(t *testing.T) {
	counted := func(n uint32) func(*abi.Conn) { return func(c *abi.Conn) { c.DupAcks = n } }
	lost := func(p *abi.Pub) { p.Losses, p.LossSeq = 1, 5000 }
	runSteps(t, []step{
		{name: "first", seg: pure(5000, 10000), reason: "consumed", after: counted(1)},
		{name: "second", conn: counted(1), seg: pure(5000, 10000), reason: "consumed", after: counted(2)},
		{name: "third", conn: counted(2), seg: pure(5000, 10000), kind: abi.RxKindAck, pub: lost,
			after: func(c *abi.Conn) { c.DupAcks = 3; recovering(5500)(c) }},
		{name: "fourth", conn: counted(3), seg: pure(5000, 10000), reason: "consumed", after: counted(4)},
		{name: "nothing in flight", conn: func(c *abi.Conn) { c.SndNxt = 5000 }, seg: pure(5000, 10000),
			reason: "consumed"},
		{name: "window changed", seg: pure(5000, 9000), reason: "consumed",
			after: func(c *abi.Conn) { c.SndWnd = 9000 }, pub: func(p *abi.Pub) { p.SndLimit = 14000 }},
		{name: "with data", seg: data(3), kind: abi.RxKindData, after: received(3)},
		{name: "older ACK", seg: pure(4999, 10000), reason: "consumed"},
		{name: "progress starts again", conn: counted(2), seg: pure(5001, 10000), reason: "consumed",
			after: func(c *abi.Conn) { c.SndUna, c.SndWl2, c.DupAcks = 5001, 5001, 0 },
			pub:   func(p *abi.Pub) { p.SndUna, p.SndLimit = 5001, 15001 }},
	})
}

// recovering: a loss is being repaired, up to a sequence number.
func recovering(recover uint32) func(*abi.Conn) {
	return func(c *abi.Conn) { c.Flags |= abi.ConnRecovery; c.Recover = recover }
}

// RFC 6582 3.2.
func TestRecovery(t *testing.T) {
	in := recovering(5300) // and 200 octets more were sent since
	inThird := func(c *abi.Conn) { in(c); c.DupAcks = 2 }
	una := func(n uint32) func(*abi.Conn) {
		return func(c *abi.Conn) { c.SndUna, c.SndWl2, c.DupAcks = n, n, 0 }
	}
	left := func(n uint32) func(*abi.Conn) {
		return func(c *abi.Conn) { una(n)(c); c.Flags &^= abi.ConnRecovery }
	}
	moved := func(n uint32) func(*abi.Pub) { return func(p *abi.Pub) { p.SndUna, p.SndLimit = n, n+10000 } }
	lost := func(n uint32) func(*abi.Pub) {
		return func(p *abi.Pub) { moved(n)(p); p.Losses, p.LossSeq = 1, n }
	}
	runSteps(t, []step{
		{name: "duplicates raise nothing", conn: inThird, seg: pure(5000, 10000), reason: "consumed",
			after: func(c *abi.Conn) { c.DupAcks = 3 }},
		{name: "a part", conn: inThird, seg: pure(5100, 10000), kind: abi.RxKindAck, after: una(5100), pub: lost(5100)},
		{name: "all but one octet", conn: in, seg: pure(5299, 10000), kind: abi.RxKindAck, after: una(5299),
			pub: lost(5299)},
		{name: "a part, with data", conn: in, kind: abi.RxKindData, pub: lost(5100),
			seg:   with(data(3), func(s *tcp) { s.ack = 5100 }),
			after: func(c *abi.Conn) { una(5100)(c); received(3)(c) }},
		{name: "a part, asked for", kind: abi.RxKindAck, pub: lost(5100), seg: pure(5100, 10000),
			conn:  func(c *abi.Conn) { in(c); c.Flags |= abi.ConnNotifyAck },
			after: func(c *abi.Conn) { una(5100)(c); c.Flags &^= abi.ConnNotifyAck }},
		{name: "an older ACK", conn: in, seg: pure(4999, 10000), reason: "consumed"},
		{name: "all", conn: in, seg: pure(5300, 10000), reason: "consumed", after: left(5300), pub: moved(5300)},
		{name: "more than all", conn: in, seg: pure(5500, 10000), reason: "consumed", after: left(5500),
			pub: moved(5500)},
		{name: "around zero, a part", seg: pure(0xfffffff8, 10000), kind: abi.RxKindAck,
			conn: func(c *abi.Conn) {
				c.SndUna, c.SndNxt, c.SndWl2 = 0xfffffff0, 20, 0xfffffff0
				recovering(4)(c)
			},
			after: una(0xfffffff8), pub: lost(0xfffffff8)},
		{name: "no recovery, no loss", conn: func(c *abi.Conn) { c.Recover = 5300 }, seg: pure(5100, 10000),
			reason: "consumed", after: una(5100), pub: moved(5100)},
	})
}

// From loss to repair, as library and peer do it: by duplicate ACKs, and by a
// time-out, of which the programs see only the retransmission.
func TestRecoveryOfThreeSegments(t *testing.T) {
	for _, c := range []struct {
		name       string
		duplicates int
	}{{"three duplicate ACKs", 3}, {"time-out", 0}} {
		t.Run(c.name, func(t *testing.T) {
			l := active(t, nil)
			for range c.duplicates {
				l.arrive(t, pure(5000, 10000))
			}
			losses := l.published(t).Losses
			for _, una := range []uint32{5000, 5100, 5200} {
				if una != 5000 {
					r := l.arrive(t, pure(una, 10000))
					losses++
					if r.meta == nil || r.pub.Losses != losses || r.pub.LossSeq != una || r.pub.SndUna != una {
						t.Fatalf("ACK of %d: counted %q, published %+v", una, r.counted, r.pub)
					}
				}
				again := header(func(h *abi.TxHeader) { h.Seq, h.Flags = una, abi.TxRetransmit })
				if r := l.write(t, tapFrame(again, strings.Repeat("d", 100))); r.verdict != verdictRedirect {
					t.Fatalf("retransmission of %d: %q", una, r.counted)
				}
			}
			r := l.arrive(t, pure(5500, 10000))
			if r.counted != "consumed" || r.pub.Losses != losses || r.after.Flags&abi.ConnRecovery != 0 {
				t.Errorf("at the end: counted %q, flags %x, published %+v", r.counted, r.after.Flags, r.pub)
			}
		})
	}
}

func TestNotifyAck(t *testing.T) {
	waits := func(c *abi.Conn) { c.Flags |= abi.ConnNotifyAck }
	runSteps(t, []step{
		{name: "SND.UNA moved", conn: waits, seg: pure(5100, 10000), kind: abi.RxKindAck,
			after: func(c *abi.Conn) { c.SndUna, c.SndWl2, c.Flags = 5100, 5100, c.Flags&^abi.ConnNotifyAck },
			pub:   func(p *abi.Pub) { p.SndUna, p.SndLimit = 5100, 15100 }},
		{name: "window opened", conn: waits, seg: pure(5000, 10001), kind: abi.RxKindAck,
			after: func(c *abi.Conn) { c.SndWnd, c.MaxWnd, c.Flags = 10001, 10001, c.Flags&^abi.ConnNotifyAck },
			pub:   func(p *abi.Pub) { p.SndLimit = 15001 }},
		{name: "window shrunk", conn: waits, seg: pure(5000, 9000), reason: "consumed",
			after: func(c *abi.Conn) { c.SndWnd = 9000 }, pub: func(p *abi.Pub) { p.SndLimit = 14000 }},
		{name: "nothing moved", conn: waits, seg: pure(5000, 10000), reason: "consumed",
			after: func(c *abi.Conn) { c.DupAcks = 1 }},
	})
}

func TestUpdateTsRecent(t *testing.T) {
	stamped := func(seq uint32) tcp { return at(with(data(3), func(s *tcp) { s.opts = ts(150, 0) }), seq) }
	runSteps(t, []step{
		{name: "at Last.ACK.sent", seg: stamped(1000), kind: abi.RxKindData,
			after: func(c *abi.Conn) { received(3)(c); c.TsRecent = 150 }},
		{name: "across it", seg: stamped(999), kind: abi.RxKindData,
			meta:  func(m *abi.RxMeta) { m.Seq, m.Offset, m.Length = 1000, m.Offset+1, 2 },
			after: func(c *abi.Conn) { received(2)(c); c.TsRecent = 150 }},
		{name: "beyond it", seg: stamped(1001), kind: abi.RxKindData,
			after: ahead(1001, 3)},
	})
}

// =============================================================================
// Sixth, seventh, eighth: URG, payload, FIN
// =============================================================================

func TestCheckControl(t *testing.T) {
	control := func(name string, s tcp) step { return step{name: name, seg: s, kind: abi.RxKindCtl, pub: ctlEvent} }
	rejected := func(name string, s tcp, kind abi.RxKind, reason string) step {
		return step{name: name, seg: s, kind: kind, reason: reason, rejected: true}
	}
	runSteps(t, []step{
		control("FIN", flagged(with(data(0), func(s *tcp) { s.win = 10000 }), fin)),
		control("FIN with data", flagged(data(3), fin)),
		control("FIN out of order", flagged(at(data(0), 2000), fin)).withWl1(2000),
		control("URG", flagged(data(3), urg)),
		control("reserved bit", with(data(3), func(s *tcp) { s.reserved = 1 })),
		control("IPv4 options", with(data(3), func(s *tcp) { s.ipOpts = []byte{1, 1, 1, 0} })),
		rejected("FIN beyond the window", flagged(at(data(3), 11000), fin), abi.RxKindProbe, "bad_seq"),
		rejected("FIN again", flagged(at(data(0), 999), fin), abi.RxKindProbe, ""),
		rejected("URG with a bad ACK", flagged(with(data(3), func(s *tcp) { s.ack = 9999 }), urg), abi.RxKindProbe, "bad_ack"),
		{name: "the acknowledgement in it counts", seg: flagged(pure(5200, 10000), fin), kind: abi.RxKindCtl,
			after: func(c *abi.Conn) { c.SndUna, c.SndWl2 = 5200, 5200 },
			pub:   func(p *abi.Pub) { p.SndUna, p.SndLimit, p.Events = 5200, 15200, abi.EventCtl }},
		{name: "ECE and CWR mean nothing here", seg: flagged(data(3), ece|cwr), kind: abi.RxKindData,
			after: received(3)},
	})
}

// withWl1 says that the segment also updates SND.WL1.
func (s step) withWl1(seq uint32) step {
	s.after = func(c *abi.Conn) { c.SndWl1 = seq }
	return s
}

// An event without its frame would demote before the kernel can see why.
func TestControlNeedsRing(t *testing.T) {
	l := active(t, nil)
	if err := l.DeleteXsk(app, ringNo); err != nil {
		t.Fatal(err)
	}
	r := l.arrive(t, flagged(data(0), fin))
	if r.verdict != verdictDrop || r.counted != "no_xsk" || r.pub.Events != 0 {
		t.Errorf("verdict %d, counted %q, events %d", r.verdict, r.counted, r.pub.Events)
	}
}

// After a control segment the connection goes on until the daemon stops it.
func TestDataAfterControl(t *testing.T) {
	l := active(t, nil)
	l.arrive(t, flagged(data(3), urg))
	r := l.arrive(t, data(3))
	if r.meta == nil || abi.RxKind(r.meta.Kind) != abi.RxKindData {
		t.Errorf("meta %+v, counted %q", r.meta, r.counted)
	}
}
