// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// shareRing gives the connection's application a veth pair, p0 to p1, with the
// relay at its end.
func shareRing(t *testing.T, l *lab) {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "p0", TxQLen: 1000}, PeerName: "p1"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.DeletePair(app)
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	far := ifindexOf(t, "p1")
	attach(t, l.Relay, far)
	setUp(t, "p0", true)
	setUp(t, "p1", true)
	if err := l.SetTap(far, app, appGen); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.DeleteTap(far) })
	if err := l.SetPair(app, ifindexOf(t, "p0")); err != nil {
		t.Fatal(err)
	}
	if err := l.SetRing(l.index(), connGen, abi.SharedRing); err != nil {
		t.Fatal(err)
	}
}

// shared is an active connection whose frames come by a veth pair.
func shared(t *testing.T, fill bool) (*lab, *xskSocket) {
	t.Helper()
	l := active(t, nil)
	trace(t, l)
	shareRing(t, l)
	x := openXSK(t, ifindexOf(t, "p1"), fill)
	if err := l.SetXsk(app, abi.SharedRing, x.fd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.DeleteXsk(app, abi.SharedRing) })
	return l, x
}

func (l *lab) words(t *testing.T, ring uint32) (r abi.Ring) {
	t.Helper()
	if err := l.Rings.Lookup(app*abi.MaxRings+ring, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// What ingress decides about a frame for a shared ring; the device's queue does
// not matter.
func TestIngressToSharedRing(t *testing.T) {
	for _, c := range []struct {
		name    string
		set     func(*testing.T, *lab)
		verdict uint32
		counted string
	}{
		{"delivered", func(*testing.T, *lab) {}, verdictRedirect, ""},
		{"no socket", func(t *testing.T, l *lab) {
			if err := l.DeleteXsk(app, abi.SharedRing); err != nil {
				t.Fatal(err)
			}
		}, verdictDrop, "no_xsk"},
		{"ring full", func(t *testing.T, l *lab) {
			l.setWords(t, abi.Ring{Consumed: minus(abi.RingSize)})
		}, verdictDrop, "no_credit"},
		{"last place in the pair", func(t *testing.T, l *lab) {
			l.setWords(t, abi.Ring{Relayed: minus(abi.PairFrames - 1)})
		}, verdictRedirect, ""},
		{"pair full", func(t *testing.T, l *lab) {
			l.setWords(t, abi.Ring{Relayed: minus(abi.PairFrames)})
		}, verdictDrop, "pair_full"},
		{"no pair", func(t *testing.T, l *lab) {
			if err := l.DeletePair(app); err != nil {
				t.Fatal(err)
			}
		}, verdictDrop, "no_xsk"},
	} {
		for queue := range uint32(2) {
			t.Run(fmt.Sprintf("%s/queue %d", c.name, queue), func(t *testing.T) {
				l, _ := shared(t, true)
				c.set(t, l)
				r := l.run(t, l.Ingress, l.ifindex, queue, data(100).frame(), 0)
				if r.verdict != c.verdict || r.counted != c.counted {
					t.Errorf("verdict %d, counted %q", r.verdict, r.counted)
				}
				want := uint32(0)
				if c.verdict == verdictRedirect {
					want = 1
				}
				if got := l.ring(t, abi.SharedRing).Delivered; got != want {
					t.Errorf("delivered %d", got)
				}
				for q := range uint32(2) {
					if got := l.ring(t, ringNo+q).Delivered; got != 0 {
						t.Errorf("delivered %d to direct ring %d", got, q)
					}
				}
			})
		}
	}
}

// minus is how a counter stands that `delivered`, 0, is n ahead of.
func minus(n uint32) uint32 { return -n }

func (l *lab) setWords(t *testing.T, r abi.Ring) {
	t.Helper()
	if err := l.Rings.Put(uint32(app*abi.MaxRings+abi.SharedRing), r); err != nil {
		t.Fatal(err)
	}
}

func TestSetRing(t *testing.T) {
	for _, c := range []struct {
		name       string
		generation uint32
		ring       uint16
		err        error
	}{
		{"shared", connGen, abi.SharedRing, nil},
		{"direct", connGen, ringNo, nil},
		{"beyond the last", connGen, abi.SharedRing + 1, unix.EINVAL},
		{"another generation", connGen + 1, abi.SharedRing, unix.ESTALE},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := active(t, nil)
			before := l.conn(t)
			if err := l.SetRing(l.index(), c.generation, c.ring); !errors.Is(err, c.err) {
				t.Fatalf("error %v", err)
			}
			if c.err == nil {
				before.Ring = c.ring
			}
			sameConn(t, "record", l.conn(t), before)
		})
	}
}

// Frame and metadata survive the hop.
func TestWireToSharedRing(t *testing.T) {
	l, x := shared(t, true)
	fromWire(t, l, x)
	if r := l.ring(t, abi.SharedRing); r.Delivered != 1 || r.Refused != 0 || l.words(t, abi.SharedRing).Relayed != 1 {
		t.Errorf("ring %+v, words %+v", r, l.words(t, abi.SharedRing))
	}
	if r := l.ring(t, ringNo); r.Delivered != 0 {
		t.Errorf("the direct ring got a frame: %+v", r)
	}
}

func TestRelayTakesOnlyWhatIngressSent(t *testing.T) {
	l, _ := shared(t, true)
	near := packetSocket(t, ifindexOf(t, "p0"))
	drops := l.drops(t)
	if _, err := unix.Write(near, data(3).frame()); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return countedSince(drops, l.drops(t)) == "pair_foreign" })
	if r := l.ring(t, abi.SharedRing); r.Delivered != 0 {
		t.Errorf("ring %+v", r)
	}
}

func await(t *testing.T, what func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Second); !what(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen")
		}
	}
}

// arriveLive runs ingress on n copies of a frame, in batches, and lets the kernel
// do what the verdicts say. A batch is one turn of the processor: as long as it
// lasts nothing leaves the pair.
func (l *lab) arriveLive(t *testing.T, frame []byte, n, batch int) {
	t.Helper()
	_, err := l.Ingress.Run(&ebpf.RunOptions{
		Data:      frame,
		Context:   xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(l.ifindex)},
		Flags:     unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		Repeat:    uint32(n),
		BatchSize: uint32(batch),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A fill ring whose producer ran backwards would have the kernel walk 2^32
// descriptors in a softirq.
func TestBrokenFillRing(t *testing.T) {
	for _, share := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared %v", share), func(t *testing.T) {
			l := active(t, nil)
			device, ring := l.ifindex, uint32(ringNo)
			if share {
				shareRing(t, l)
				device, ring = ifindexOf(t, "p1"), abi.SharedRing
			}
			x := openXSK(t, device, true)
			if err := l.SetXsk(app, ring, x.fd); err != nil {
				t.Fatal(err)
			}
			if r := l.run(t, l.Ingress, l.ifindex, 0, data(100).frame(), 0); r.verdict != verdictRedirect {
				t.Errorf("a good ring: verdict %d, counted %q", r.verdict, r.counted)
			}
			x.setFill(t, 1<<40, ^uint32(0))
			if r := l.run(t, l.Ingress, l.ifindex, 0, data(100).frame(), 0); r.verdict != verdictDrop || r.counted != "ring_broken" {
				t.Errorf("a broken ring: verdict %d, counted %q", r.verdict, r.counted)
			}
		})
	}
}

// produced is what the kernel has put into the RX ring.
func (x *xskSocket) produced() uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&x.rx[x.offsets.Rx.Producer])))
}

// The proof: whatever is lost behind ingress is taken back, and as soon as the
// pair is empty the socket holds what was delivered.
func TestSharedProof(t *testing.T) {
	for _, c := range []struct {
		name    string
		fill    bool
		disturb func(*testing.T, *lab)
		n       int
		want    string // a reason that must have been counted
	}{
		{"socket without frames", false, func(*testing.T, *lab) {}, 1000, "redirect_rx"},
		{"socket with few frames", true, func(*testing.T, *lab) {}, 1000, "redirect_rx"},
		{"pair overrun", true, func(*testing.T, *lab) {}, 10000, "pair_full"},
		{"near end down", true, func(t *testing.T, l *lab) { setUp(t, "p0", false) }, 1000, "redirect_rx"},
		{"near end too small", true, func(t *testing.T, l *lab) { setMTU(t, "p0", 68) }, 1000, "redirect_rx"},
		{"pair gone from the map", true, func(t *testing.T, l *lab) { _ = l.DeletePair(app) }, 1000, "no_xsk"},
		{"socket gone from the map", true, func(t *testing.T, l *lab) { _ = l.DeleteXsk(app, abi.SharedRing) }, 1000, "no_xsk"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, x := shared(t, c.fill)
			c.disturb(t, l)
			drops := l.drops(t)
			l.arriveLive(t, data(100).frame(), c.n, 256)
			await(t, func() bool { return l.ring(t, abi.SharedRing).Delivered == l.words(t, abi.SharedRing).Relayed })
			r := l.ring(t, abi.SharedRing)
			if r.Delivered != x.produced() {
				t.Errorf("delivered %d, the socket has %d", r.Delivered, x.produced())
			}
			after := l.drops(t)
			if after[c.want] == drops[c.want] {
				t.Errorf("no %s counted", c.want)
			}
			t.Logf("delivered %d, refused %d, drops %v", r.Delivered, r.Refused, diff(drops, after))
		})
	}
}

// Several processors put frames into one pair, and each may be one too far.
func TestSharedProofOnAllProcessors(t *testing.T) {
	l, x := shared(t, true)
	drops := l.drops(t)
	var all sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		all.Go(func() { l.arriveLive(t, data(100).frame(), 50000, 256) })
	}
	all.Wait()
	await(t, func() bool { return l.ring(t, abi.SharedRing).Delivered == l.words(t, abi.SharedRing).Relayed })
	if got := l.ring(t, abi.SharedRing).Delivered; got != x.produced() {
		t.Errorf("delivered %d, the socket has %d", got, x.produced())
	}
	t.Logf("drops %v", diff(drops, l.drops(t)))
}

func diff(before, after map[string]uint64) map[string]uint64 {
	d := map[string]uint64{}
	for name, n := range after {
		if n != before[name] {
			d[name] = n - before[name]
		}
	}
	return d
}

// TestHopTime reports what the veth pair costs a frame, and does not judge. The
// sockets have no frames: both ways end there, with a refusal.
func TestHopTime(t *testing.T) {
	const rounds, frames = 31, 3200
	l, _ := shared(t, false)
	direct := openXSK(t, l.ifindex, false)
	if err := l.SetXsk(app, ringNo, direct.fd); err != nil {
		t.Fatal(err)
	}
	frame := data(64).frame()
	for _, batch := range []int{1, 16, 64} {
		var took [2][]time.Duration
		for range rounds {
			for i, ring := range []uint16{ringNo, abi.SharedRing} {
				if err := l.SetRing(l.index(), connGen, ring); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				l.arriveLive(t, frame, frames, batch)
				took[i] = append(took[i], time.Since(start)/frames)
			}
		}
		for _, list := range took {
			slices.Sort(list)
		}
		t.Logf("%2d at a time: direct %v, shared %v a frame", batch, took[0][rounds/2], took[1][rounds/2])
	}
	for _, ring := range []uint32{ringNo, abi.SharedRing} {
		if r := l.ring(t, ring); r.Refused == 0 || r.Delivered != 0 {
			t.Errorf("ring %d: %+v", ring, r)
		}
	}
}
