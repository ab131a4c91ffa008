// SPDX-License-Identifier: Apache-2.0

package handover_test

import (
	"net/netip"
	"testing"
	"time"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/conntrack"
	"github.com/etran-go/etran/runtime/internal/testnet"
)

// Window checks are off from OBSERVE on; they are on again if the switch does
// not come, and stay off once segments went by unseen.
func TestTrackingIsRelaxedAndRestored(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	local := netip.MustParseAddrPort(ours.local)
	remote := netip.MustParseAddrPort(peer.LocalAddr().String())
	testnet.Track(t, local, remote, remote, local)
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
	local := netip.MustParseAddrPort(ours.local)
	testnet.Track(t, local, remote, netip.MustParseAddrPort("10.66.0.3:80"), local)
	c := l.conn(60, ours)
	if p := c.observe(); p != abi.PhaseRefused || abi.PathReason(c.a.Reason) != abi.PathReasonNat {
		t.Errorf("phase %d, %v", p, abi.PathReason(c.a.Reason))
	}
}
