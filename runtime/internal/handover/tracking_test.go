// SPDX-License-Identifier: Apache-2.0

package handover_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/conntrack"
)

// trackBy makes a connection tracking entry, as a firewall rule would; replies
// is where answers come from.
func trackBy(t *testing.T, local, remote, replies netip.AddrPort) {
	t.Helper()
	tuple := func(from, to netip.AddrPort) netlink.IPTuple {
		return netlink.IPTuple{SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice(),
			SrcPort: from.Port(), DstPort: to.Port(), Protocol: unix.IPPROTO_TCP}
	}
	const established, short = 3, 60
	err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{
		FamilyType: unix.AF_INET, Forward: tuple(local, remote), Reverse: tuple(replies, local),
		ProtoInfo: &netlink.ProtoInfoTCP{State: established}, TimeOut: short})
	if err != nil {
		t.Skipf("no connection tracking on this kernel: %v", err)
	}
	t.Cleanup(func() {
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			t.Error(err)
		}
	})
}

// Window checks are off from OBSERVE on; they are on again if the switch does
// not come, and stay off once segments went by unseen.
func TestTrackingIsRelaxedAndRestored(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	local := netip.MustParseAddrPort(ours.local)
	remote := netip.MustParseAddrPort(peer.LocalAddr().String())
	trackBy(t, local, remote, remote)
	expect := func(when string, liberal bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			e, err := conntrack.Find(local, remote)
			if err == nil && e.Liberal == liberal {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v, %v", when, e, err)
			}
		}
	}
	c := l.conn(60, ours)
	if p := c.observe(); p != abi.PhaseObserving {
		t.Fatalf("phase %d, %v", p, abi.PathReason(c.a.Reason))
	}
	expect("observed", true)
	l.openRings()
	c.setPhase(abi.PhaseCancelReq)
	c.tell(abi.MsgTypeCancel, 0, -1)
	c.await(abi.PhaseCancelReq)
	expect("cancelled", false)

	promote(t, l, c, ours, peer)
	fastExchange(t, c, peer, 500)
	c.demote(abi.PathReasonRequest)
	exchange(t, ours, peer, 500)
	expect("demoted", true)
	if p := c.observe(); p != abi.PhaseObserving {
		t.Fatalf("phase %d, %v", p, abi.PathReason(c.a.Reason))
	}
	c.setPhase(abi.PhaseCancelReq)
	c.tell(abi.MsgTypeCancel, 0, -1)
	c.await(abi.PhaseCancelReq)
	time.Sleep(50 * time.Millisecond)
	expect("demoted, then cancelled", true)
}

// Addresses that are translated are not those on the wire.
func TestTranslatedConnectionIsRefused(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	remote := netip.MustParseAddrPort(peer.LocalAddr().String())
	trackBy(t, netip.MustParseAddrPort(ours.local), remote, netip.MustParseAddrPort("10.66.0.3:80"))
	c := l.conn(60, ours)
	if p := c.observe(); p != abi.PhaseRefused || abi.PathReason(c.a.Reason) != abi.PathReasonNat {
		t.Errorf("phase %d, %v", p, abi.PathReason(c.a.Reason))
	}
}
