// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	abi "github.com/etran-go/etran/c-abi"
)

// =============================================================================
// What is not ours
// =============================================================================

func TestNotOurs(t *testing.T) {
	good := tcp{seq: 1000, ack: 5000, flags: ack, win: 10000, data: "x"}
	but := func(set func(*tcp)) []byte { s := good; set(&s); return s.frame() }
	for name, frame := range map[string][]byte{
		"runt":              good.frame()[:14],
		"cut in IPv4":       good.frame()[:30],
		"cut in TCP":        good.frame()[:50],
		"ARP":               append(append([]byte{}, good.frame()[:12]...), append([]byte{8, 6}, make([]byte, 60)...)...),
		"IPv6 version":      func() []byte { f := good.frame(); f[14] = 0x65; return f }(),
		"IHL 4":             func() []byte { f := good.frame(); f[14] = 0x44; return f }(),
		"UDP":               but(func(s *tcp) { s.proto = 17 }),
		"other port":        but(func(s *tcp) { s.sport = 1 }),
		"other VLAN":        but(func(s *tcp) { s.vlan = 7 }),
		"802.1ad":           but(func(s *tcp) { s.tpid = 0x88a8 }),
		"cut in VLAN":       but(func(s *tcp) { s.vlan = 7 })[:16],
		"two tags":          func() []byte { f := but(func(s *tcp) { s.vlan = 7 }); f[16], f[17] = 0x81, 0; return f }(),
		"multicast address": but(func(s *tcp) { s.dmac = [6]byte{1, 0, 0x5e, 0, 0, 1} }),
		"IPv4 checksum":     but(func(s *tcp) { s.badIPSum = true }),
		"and with options":  but(func(s *tcp) { s.badIPSum, s.ipOpts = true, []byte{1, 1, 1, 1} }),
		"later fragment":    but(func(s *tcp) { s.frag = 0x2001 }),
	} {
		t.Run(name, func(t *testing.T) {
			l := active(t, nil)
			r := l.run(t, l.Ingress, l.ifindex, 0, frame, 0)
			if r.verdict != verdictPass || r.meta != nil || r.counted != "" {
				t.Errorf("verdict %d, meta %v, counted %q", r.verdict, r.meta, r.counted)
			}
			if string(r.frame) != string(frame) {
				t.Error("the frame was changed")
			}
			sameConn(t, "record", r.after, r.before)
		})
	}
	t.Run("other device", func(t *testing.T) {
		l := active(t, nil)
		if r := l.run(t, l.Ingress, 1, 0, good.frame(), 0); r.verdict != verdictPass || r.meta != nil {
			t.Errorf("verdict %d, meta %v", r.verdict, r.meta)
		}
	})
	t.Run("no flow", func(t *testing.T) {
		l := active(t, nil)
		if err := l.DeleteFlow(l.key()); err != nil {
			t.Fatal(err)
		}
		if r := l.arrive(t, good); r.verdict != verdictPass || r.meta != nil {
			t.Errorf("verdict %d, meta %v", r.verdict, r.meta)
		}
	})
	t.Run("other transport", func(t *testing.T) {
		l := active(t, func(c *abi.Conn) { c.Transport = 99 })
		if r := l.arrive(t, good); r.verdict != verdictPass || r.meta != nil {
			t.Errorf("verdict %d, meta %v", r.verdict, r.meta)
		}
	})
}

// =============================================================================
// What can be in the way of a delivery
// =============================================================================

// In ACTIVE and HOLD an obstacle drops the frame and moves nothing on the
// receive side; in OBSERVE and NONE it must not matter.
func TestObstacles(t *testing.T) {
	data := tcp{seq: 1000, ack: 5000, flags: ack, win: 10000, opts: ts(100, 0), data: "x"}
	long := data
	long.data = strings.Repeat("x", abi.FrameSize-abi.FrameHeadroom-66+1)
	for _, c := range []struct {
		name    string
		set     func(*testing.T, *lab)
		seg     tcp
		queue   uint32
		foreign bool // somebody's metadata leaves no room for ours
		reason  string
	}{
		{name: "no socket", seg: data, reason: "no_xsk", set: func(t *testing.T, l *lab) {
			if err := l.DeleteXsk(app, ringNo); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "queue without socket", seg: data, queue: 1, reason: "no_xsk"},
		{name: "frame too long", seg: long, reason: "too_long"},
		{name: "no room for metadata", seg: data, foreign: true, reason: "no_meta"},
		{name: "ring full", seg: data, reason: "no_credit", set: func(t *testing.T, l *lab) {
			consumed := uint32(1<<32 - abi.RingSize)
			if err := l.Rings.Put(uint32(app*abi.MaxRings+ringNo), abi.Ring{Consumed: consumed}); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "application gone", seg: data, reason: "internal", set: func(t *testing.T, l *lab) {
			if err := l.RemoveApp(app); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		for _, state := range []abi.FlowState{abi.FlowStateObserve, abi.FlowStateHold, abi.FlowStateActive} {
			t.Run(c.name+"/"+stateName(state), func(t *testing.T) {
				l := inState(t, state)
				if c.set != nil {
					c.set(t, l)
				}
				foreign := 0
				if c.foreign {
					foreign = metadataLimit(t, l)
				}
				r := l.run(t, l.Ingress, l.ifindex, c.queue, c.seg.frame(), foreign)
				if r.meta != nil {
					t.Errorf("delivered: %+v", r.meta)
				}
				if state == abi.FlowStateObserve {
					if r.verdict != verdictPass || r.counted != "" {
						t.Errorf("verdict %d, counted %q", r.verdict, r.counted)
					}
					return
				}
				if r.verdict != verdictDrop || r.counted != c.reason {
					t.Errorf("verdict %d, counted %q, want %q", r.verdict, r.counted, c.reason)
				}
				if r.after.RcvHigh != r.before.RcvHigh || r.after.BytesIn != 0 || r.after.Held != 0 {
					t.Errorf("receive state moved: %+v", r.after)
				}
				if d := l.ring(t, ringNo).Delivered; d != 0 {
					t.Errorf("delivered %d", d)
				}
			})
		}
	}
}

// metadataLimit is an amount of metadata to which ours cannot be added: 32
// octets are allowed, on newer kernels as many as the headroom has.
func metadataLimit(t *testing.T, l *lab) int {
	t.Helper()
	const most = 208
	_, err := l.Pass.Run(&ebpf.RunOptions{Data: make([]byte, most+64),
		Context: xdpContext{Data: most, DataEnd: most + 64}})
	if err != nil {
		return 32
	}
	return most
}

// A full ring must not stop acknowledgements from being processed.
func TestPureAckNeedsNoRing(t *testing.T) {
	l := active(t, nil)
	if err := l.DeleteXsk(app, ringNo); err != nil {
		t.Fatal(err)
	}
	r := l.arrive(t, tcp{seq: 1000, ack: 5500, flags: ack, win: 10000})
	if r.verdict != verdictDrop || r.counted != "consumed" || r.pub.SndUna != 5500 {
		t.Errorf("verdict %d, counted %q, published %+v", r.verdict, r.counted, r.pub)
	}
}

// The flag that asks for a notification survives until one can be delivered.
func TestNotificationWaitsForRing(t *testing.T) {
	l := active(t, func(c *abi.Conn) { c.Flags |= abi.ConnNotifyAck })
	if err := l.DeleteXsk(app, ringNo); err != nil {
		t.Fatal(err)
	}
	l.arrive(t, tcp{seq: 1000, ack: 5100, flags: ack, win: 10000})
	if err := l.SetXsk(app, ringNo, l.xsk); err != nil {
		t.Fatal(err)
	}
	r := l.arrive(t, tcp{seq: 1000, ack: 5200, flags: ack, win: 10000})
	if r.meta == nil || abi.RxKind(r.meta.Kind) != abi.RxKindAck || r.after.Flags&abi.ConnNotifyAck != 0 {
		t.Errorf("meta %+v, flags %x", r.meta, r.after.Flags)
	}
}

// Each queue has its ring, and the counters are the ring's.
func TestQueueSelectsRing(t *testing.T) {
	l := active(t, nil)
	if err := l.SetXsk(app, ringNo+1, l.xsk); err != nil {
		t.Fatal(err)
	}
	s := tcp{seq: 1000, ack: 5000, flags: ack, win: 10000, data: "x"}
	for queue, want := range []uint32{1, 2} {
		for range want {
			if r := l.run(t, l.Ingress, l.ifindex, uint32(queue), s.frame(), 0); r.meta == nil {
				t.Fatalf("queue %d: not delivered, %q", queue, r.counted)
			}
		}
		if got := l.ring(t, ringNo+uint32(queue)).Delivered; got != want {
			t.Errorf("queue %d: delivered %d, want %d", queue, got, want)
		}
	}
}

// =============================================================================
// NONE, OBSERVE, HOLD
// =============================================================================

func stateName(s abi.FlowState) string {
	return [...]string{"NONE", "OBSERVE", "HOLD", "ACTIVE"}[s]
}

// inState is the standard connection on its way: its numbers are already there.
func inState(t testing.TB, state abi.FlowState) *lab {
	t.Helper()
	if state == abi.FlowStateActive {
		return active(t, nil)
	}
	l := fresh(t)
	for s := abi.FlowStateObserve; s <= state; s++ {
		l.enter(t, s)
	}
	return l
}

func TestNone(t *testing.T) {
	l := fresh(t)
	r := l.arrive(t, tcp{seq: 1000, ack: 5000, flags: ack, data: "x"})
	if r.verdict != verdictPass || r.meta != nil {
		t.Errorf("verdict %d, meta %v", r.verdict, r.meta)
	}
	sameConn(t, "record", r.after, r.before)
}

func TestObserve(t *testing.T) {
	l := fresh(t)
	set := func(c *abi.Conn) { c.Flags, c.TsRecent = 0, 0 }
	c := standard()
	set(c)
	if err := l.InstallConn(l.index(), c); err != nil {
		t.Fatal(err)
	}
	l.enter(t, abi.FlowStateObserve)

	for _, step := range []struct {
		name  string
		seg   tcp
		want  func(*abi.Conn)
		fault bool
	}{
		{name: "SYN alone", seg: tcp{seq: 1, flags: syn}, fault: true},
		{name: "malformed", seg: tcp{seq: 1, flags: ack, doff: 15}, fault: true},
		{name: "fragment", seg: tcp{seq: 1, flags: ack, frag: 0x2000}, fault: true},
		{name: "first", seg: tcp{seq: 2000, ack: 300, flags: ack, opts: ts(50, 0), data: "abcd"},
			want: func(c *abi.Conn) {
				c.ObsEnd, c.ObsAck, c.TsRecent = 2004, 300, 50
				c.Flags |= abi.ConnObserved | abi.ConnTsValid
			}},
		{name: "next", seg: tcp{seq: 2004, ack: 310, flags: ack, opts: ts(51, 0), data: "ef"},
			want: func(c *abi.Conn) { c.ObsEnd, c.ObsAck, c.TsRecent = 2006, 310, 51 }},
		{name: "repeated, with a poisonous timestamp",
			seg:  tcp{seq: 2000, ack: 300, flags: ack, opts: ts(1<<30, 0), data: "abcd"},
			want: func(c *abi.Conn) {}},
		{name: "pure ACK", seg: tcp{seq: 2006, ack: 320, flags: ack, opts: ts(52, 0)},
			want: func(c *abi.Conn) { c.ObsAck, c.TsRecent = 320, 52 }},
		{name: "FIN counts", seg: tcp{seq: 2006, ack: 320, flags: ack | fin, opts: ts(53, 0)},
			want: func(c *abi.Conn) { c.ObsEnd, c.TsRecent = 2007, 53 }},
		{name: "timestamp elsewhere",
			seg:  tcp{seq: 2007, ack: 320, flags: ack, opts: append([]byte{8, 10, 0, 0, 0, 54, 0, 0, 0, 0}, 1, 1)},
			want: func(c *abi.Conn) { c.TsRecent = 54 }},
	} {
		r := l.arrive(t, step.seg)
		if r.verdict != verdictPass || r.meta != nil || r.counted != "" {
			t.Errorf("%s: verdict %d, meta %v, counted %q", step.name, r.verdict, r.meta, r.counted)
		}
		if string(r.frame) != string(step.seg.frame()) {
			t.Errorf("%s: the frame was changed", step.name)
		}
		want := r.before
		if !step.fault {
			step.want(&want)
			want.ObsSegs++
			want.ObsMac = peerMAC
		}
		sameConn(t, step.name, r.after, want)
		if moved := r.after.LastRxNs != r.before.LastRxNs; moved == step.fault {
			t.Errorf("%s: last_rx_ns moved: %v", step.name, moved)
		}
		if r.pub.ObsSegs != want.ObsSegs || r.pub.State != uint32(abi.FlowStateObserve) {
			t.Errorf("%s: published %+v", step.name, r.pub)
		}
	}
}

func TestHold(t *testing.T) {
	for _, c := range []struct {
		name string
		seg  tcp
		high uint32 // RCV.HIGH afterwards
	}{
		{"data", tcp{seq: 1000, ack: 5000, flags: ack, data: "abc"}, 1003},
		{"pure ACK", tcp{seq: 1000, ack: 5000, flags: ack}, 1000},
		{"FIN", tcp{seq: 1000, ack: 5000, flags: ack | fin}, 1000},
		{"RST anywhere", tcp{seq: 77, flags: rst}, 1000},
		{"old data", tcp{seq: 900, ack: 5000, flags: ack, data: "abc"}, 1000},
		{"IPv4 options", tcp{seq: 1000, ack: 5000, flags: ack, data: "abc", ipOpts: []byte{1, 1, 1, 0}}, 1003},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := inState(t, abi.FlowStateHold)
			rec := l.conn(t)
			rec.RcvHigh = 1000
			if err := l.Conns.Put(l.index(), &rec); err != nil {
				t.Fatal(err)
			}
			r := l.arrive(t, c.seg)
			want := abi.RxMeta{Slot: slot, Kind: uint16(abi.RxKindHeld), Generation: connGen,
				Length: uint16(len(c.seg.frame())), Seq: c.seg.seq}
			if r.verdict != verdictRedirect || r.meta == nil || *r.meta != want || r.counted != "" {
				t.Errorf("verdict %d, counted %q, meta %+v, want %+v", r.verdict, r.counted, r.meta, want)
			}
			after := r.before
			after.Held++
			after.RcvHigh = c.high
			sameConn(t, "record", r.after, after)
			if d := l.ring(t, ringNo).Delivered; d != 1 {
				t.Errorf("delivered %d", d)
			}
		})
	}
}

// Nobody can check a held segment later: it gets whole checksums when it is
// given to the kernel.
func TestHoldDropsFaulty(t *testing.T) {
	for _, c := range []struct {
		reason string
		seg    tcp
	}{
		{"malformed", tcp{seq: 1000, ack: 5000, flags: ack, data: "abc", doff: 15}},
		{"checksum", tcp{seq: 1000, ack: 5000, flags: ack, data: "abc", badSum: true}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			l := inState(t, abi.FlowStateHold)
			rec := l.conn(t)
			rec.Flags |= abi.ConnVerifyCsum
			if err := l.Conns.Put(l.index(), &rec); err != nil {
				t.Fatal(err)
			}
			r := l.arrive(t, c.seg)
			if r.verdict != verdictDrop || r.counted != c.reason || l.ring(t, ringNo).Delivered != 0 {
				t.Errorf("verdict %d, counted %q", r.verdict, r.counted)
			}
			sameConn(t, "record", r.after, r.before)
		})
	}
}

func TestFragment(t *testing.T) {
	for _, state := range []abi.FlowState{abi.FlowStateHold, abi.FlowStateActive} {
		t.Run(stateName(state), func(t *testing.T) {
			l := inState(t, state)
			r := l.arrive(t, tcp{seq: 1000, ack: 5000, flags: ack, data: "abc", frag: 0x2000})
			if r.verdict != verdictDrop || r.counted != "fragment" {
				t.Errorf("verdict %d, counted %q", r.verdict, r.counted)
			}
			sameConn(t, "record", r.after, r.before)
		})
	}
}
