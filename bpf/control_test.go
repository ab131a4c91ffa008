// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

func TestSetState(t *testing.T) {
	for _, c := range []struct {
		name       string
		index      uint32
		generation uint32
		from, to   abi.FlowState
		want       error
	}{
		{"next", Index(app, slot), connGen, abi.FlowStateNone, abi.FlowStateObserve, nil},
		{"another generation", Index(app, slot), connGen + 1, abi.FlowStateNone, abi.FlowStateObserve, unix.ESTALE},
		{"not the present state", Index(app, slot), connGen, abi.FlowStateHold, abi.FlowStateActive, unix.EBUSY},
		{"no state", Index(app, slot), connGen, abi.FlowStateNone, abi.FlowStateActive + 1, unix.EINVAL},
		{"no application", Index(app+1, slot), 0, abi.FlowStateNone, abi.FlowStateObserve, unix.EINVAL},
		{"no connection", abi.MaxConns, connGen, abi.FlowStateNone, abi.FlowStateObserve, unix.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := fresh(t)
			before := l.published(t)
			_, err := l.SetState(c.index, c.generation, c.from, c.to)
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			want := abi.FlowStateNone
			if c.want == nil {
				want = c.to
			} else if l.published(t) != before {
				t.Errorf("published %+v", l.published(t))
			}
			if got := abi.FlowState(l.conn(t).State); got != want {
				t.Errorf("state %d, want %d", got, want)
			}
		})
	}
	t.Run("no operation", func(t *testing.T) {
		l := fresh(t)
		if _, err := l.Ctl(abi.Ctl{Op: 99, Index: l.index(), Generation: connGen}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("request cut short", func(t *testing.T) {
		l := fresh(t)
		if verdict, err := l.Control.Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil || verdict != 0 {
			t.Errorf("verdict %d, error %v", verdict, err)
		}
	})
}

// The answer is the whole record, whether or not the operation was refused.
func TestSnapshot(t *testing.T) {
	l := active(t, func(c *abi.Conn) { c.ObsEnd, c.Held, c.Pad4[10] = 1, 2, 3 })
	for _, generation := range []uint32{connGen, connGen + 1} {
		got, err := l.Snapshot(l.index(), generation)
		if (generation == connGen) != (err == nil) {
			t.Errorf("generation %d: %v", generation, err)
		}
		sameConn(t, "snapshot", got, l.conn(t))
	}
}

func TestEvent(t *testing.T) {
	l := active(t, nil)
	before := l.published(t)
	if _, err := l.Ctl(abi.Ctl{Op: uint32(abi.CtlOpEvent), Index: l.index(), Generation: connGen}); err != nil {
		t.Fatal(err)
	}
	before.Events = abi.EventCtl
	if got := l.published(t); got != before {
		t.Errorf("published %+v, want %+v", got, before)
	}
}

// A slot that is used again shows nothing of its last connection.
func TestObserveClearsPublished(t *testing.T) {
	l := active(t, func(c *abi.Conn) { c.DupAcks = 2 })
	l.arrive(t, pure(5000, 10000))
	l.arrive(t, flagged(data(3), fin))
	l.write(t, tapFrame(header(func(h *abi.TxHeader) { h.Seq = 1 }), "x"))
	p := l.published(t)
	if p.Losses != 1 || p.Events == 0 || p.TxRefused != 1 {
		t.Fatalf("published %+v", p)
	}
	l.enter(t, abi.FlowStateHold)
	l.enter(t, abi.FlowStateNone)
	if got := l.published(t); got.State != 0 || got.Events != p.Events || got.Losses != 1 {
		t.Errorf("after the end: %+v", got)
	}
	if err := l.InstallConn(l.index(), &abi.Conn{Generation: connGen + 1, Transport: 1}); err != nil {
		t.Fatal(err)
	}
	l.enter(t, abi.FlowStateObserve)
	want := abi.Pub{Generation: connGen + 1, State: uint32(abi.FlowStateObserve)}
	if got := l.published(t); got != want {
		t.Errorf("published %+v, want %+v", got, want)
	}
}

// What OBSERVE saw bounds what may be acknowledged after it.
func TestHoldStartsAtSeenEnd(t *testing.T) {
	l := fresh(t)
	l.enter(t, abi.FlowStateObserve)
	l.arrive(t, at(data(5), 3000))
	c, err := l.SetState(l.index(), connGen, abi.FlowStateObserve, abi.FlowStateHold)
	if err != nil {
		t.Fatal(err)
	}
	if c.ObsEnd != 3005 || c.RcvHigh != 3005 {
		t.Errorf("obs_end %d, rcv_high %d", c.ObsEnd, c.RcvHigh)
	}
}

func TestActivate(t *testing.T) {
	l := fresh(t)
	empty := abi.Conn{Generation: connGen, Transport: 1, Raddr: be(peer), Ring: ringNo, Hop: 1}
	if err := l.InstallConn(l.index(), &empty); err != nil {
		t.Fatal(err)
	}
	dump := standard()
	dump.RcvNxt, dump.RcvAdv, dump.TsRecent = 3005, 3100, 1
	if _, err := l.Activate(l.index(), connGen, dump); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("from NONE: %v", err)
	}
	l.enter(t, abi.FlowStateObserve)
	setFlags(t, l, abi.ConnRecovery|abi.ConnNotifyAck) // of an earlier life
	l.arrive(t, with(at(data(5), 3000), func(s *tcp) { s.opts = ts(150, 0) }))
	l.enter(t, abi.FlowStateHold)
	l.arrive(t, at(data(10), 3005))
	dump.Laddr, dump.Held, dump.ObsEnd, dump.State = 1, 99, 99, 99
	dump.Flags = abi.ConnTimestamps | abi.ConnVerifyCsum | abi.ConnSack | abi.ConnNotifyAck | abi.ConnRecovery
	got, err := l.Activate(l.index(), connGen, dump)
	if err != nil {
		t.Fatal(err)
	}
	want := *standard()
	want.State = uint32(abi.FlowStateActive)
	want.RcvNxt, want.RcvAdv, want.RcvHigh = 3005, 3100, 3015
	want.TsRecent = 150 // what ingress saw is newer
	want.Flags = abi.ConnTimestamps | abi.ConnTsValid | abi.ConnVerifyCsum | abi.ConnSack | abi.ConnObserved
	want.Laddr, want.Lport, want.Rport, want.IpId = 0, 0, 0, 0 // not the dump's to say
	want.App, want.Slot = app, slot
	want.Held, want.ObsSegs, want.ObsEnd, want.ObsAck, want.ObsMac = 1, 1, 3005, 5000, peerMAC
	sameConn(t, "record", got, want)
	p := l.published(t)
	if p.State != want.State || p.SndUna != 5000 || p.SndLimit != 15000 || p.SndNxt != 5500 || p.RcvNxt != 3005 {
		t.Errorf("published %+v", p)
	}
}

func setFlags(t *testing.T, l *lab, flags uint32) {
	t.Helper()
	c := l.conn(t)
	c.Flags |= flags
	if err := l.Conns.Put(l.index(), &c); err != nil {
		t.Fatal(err)
	}
}

// What the library may take from the held segments, it must be able to
// acknowledge, though the dump tells of a smaller window; but no more.
func TestActivateBoundsHeld(t *testing.T) {
	for _, c := range []struct {
		name       string
		held, want uint32
	}{{"older", 900, 1000}, {"inside", 2000, 2003}, {"beyond the window", 20000, 20003}, {"beyond the buffer", 500000, 1000 + abi.RcvBuf}} {
		t.Run(c.name, func(t *testing.T) {
			l := inState(t, abi.FlowStateHold)
			l.arrive(t, at(data(3), c.held))
			got, err := l.Activate(l.index(), connGen, standard())
			if err != nil {
				t.Fatal(err)
			}
			if got.RcvHigh != c.want {
				t.Errorf("rcv_high %d, want %d", got.RcvHigh, c.want)
			}
			if edge := max(c.want, 11000); got.RcvAdv != edge {
				t.Errorf("rcv_adv %d, want %d", got.RcvAdv, edge)
			}
		})
	}
}

// Without a TSval seen on the wire the dump's is better than none.
func TestActivateTakesTsRecent(t *testing.T) {
	l := fresh(t)
	if err := l.InstallConn(l.index(), &abi.Conn{Generation: connGen, Transport: 1}); err != nil {
		t.Fatal(err)
	}
	l.enter(t, abi.FlowStateObserve)
	l.enter(t, abi.FlowStateHold)
	got, err := l.Activate(l.index(), connGen, standard())
	if err != nil {
		t.Fatal(err)
	}
	if got.TsRecent != 100 || got.Flags&abi.ConnTsValid == 0 {
		t.Errorf("ts_recent %d, flags %x", got.TsRecent, got.Flags)
	}
}

// =============================================================================
// The loader
// =============================================================================

func TestInstallNeedsNone(t *testing.T) {
	l := active(t, nil)
	if err := l.InstallConn(l.index(), standard()); !errors.Is(err, unix.EBUSY) {
		t.Errorf("over a live record: %v", err)
	}
	live := standard()
	live.State = uint32(abi.FlowStateActive)
	if err := l.InstallConn(l.index()+1, live); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a live record: %v", err)
	}
}

func TestFlowIsTakenOnce(t *testing.T) {
	l := fresh(t)
	if err := l.SetFlow(l.key(), l.index()+1); !errors.Is(err, ebpf.ErrKeyExist) {
		t.Errorf("error %v", err)
	}
}

func TestTapPlaces(t *testing.T) {
	l := fresh(t)
	other := tapIf + abi.MaxTaps
	if err := l.SetTap(other, app, appGen); !errors.Is(err, unix.EBUSY) {
		t.Errorf("place of a living tap: %v", err)
	}
	if err := l.DeleteTap(other); err != nil {
		t.Error(err)
	}
	if r := l.write(t, tapFrame(header(nil), "")); r.counted == "tx_no_app" {
		t.Error("deleting one tap took the other away")
	}
	if err := l.DeleteTap(tapIf); err != nil {
		t.Error(err)
	}
	if r := l.write(t, tapFrame(header(nil), "")); r.counted != "tx_no_app" {
		t.Errorf("deleted tap: %q", r.counted)
	}
	if err := l.SetTap(other, app, appGen); err != nil {
		t.Error(err)
	}
	if r := l.write(t, tapFrame(header(nil), "")); r.counted != "tx_no_app" {
		t.Errorf("another tap in its place: %q", r.counted)
	}
	if err := l.DeleteTap(other); err != nil {
		t.Error(err)
	}
}

// The application's descriptor must be good for reading only.
func TestPubMapIsFrozen(t *testing.T) {
	l := fresh(t)
	if err := l.pub.Put(uint32(slot), abi.Pub{}); !errors.Is(err, unix.EPERM) {
		t.Errorf("update: %v", err)
	}
	element := binary.Size(abi.Pub{})
	size := abi.AppSlots * element
	if _, err := unix.Mmap(l.pub.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
		t.Errorf("map for writing: %v", err)
	}
	m, err := unix.Mmap(l.pub.FD(), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	if err := unix.Mprotect(m, unix.PROT_READ|unix.PROT_WRITE); !errors.Is(err, unix.EACCES) {
		t.Errorf("make writable: %v", err)
	}
	l.enter(t, abi.FlowStateObserve)
	if got := m[slot*element+4]; got != byte(abi.FlowStateObserve) {
		t.Errorf("state through the mapping: %d", got)
	}
}

func TestCheckKernel(t *testing.T) {
	if err := CheckKernel(); err != nil {
		t.Error(err)
	}
}

// A second load with the same pins has the same maps.
func TestPinnedMapsAreAdopted(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, 0)
	first, err := Load(LoadOptions{PinPath: dir})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	if err := first.InstallConn(5, &abi.Conn{Generation: 6}); err != nil {
		t.Fatal(err)
	}
	first.Close()
	second, err := Load(LoadOptions{PinPath: dir})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer second.Close()
	var c abi.Conn
	if err := second.Conns.Lookup(uint32(5), &c); err != nil || c.Generation != 6 {
		t.Errorf("generation %d, error %v", c.Generation, err)
	}
}
