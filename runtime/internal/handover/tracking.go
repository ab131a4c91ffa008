// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"time"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/conntrack"
)

// While a connection is fast, connection tracking sees none of its segments:
// its entry would expire, and what comes after a demotion would be invalid.
// Firewalls drop both.

// trackingRefresh is how often a fast connection's entry is refreshed at least;
// a shorter time-out needs it more often.
const (
	trackingRefresh  = time.Minute
	refreshesInATime = 3
)

// tracking is what the slot did to the connection's entry.
type tracking struct {
	tracked   bool // there is an entry
	ours      bool // we made it liberal, and its windows are still right
	refreshed time.Time
	every     time.Duration
}

// keep leaves the entry liberal for the rest of its life: what goes by unseen
// from now on cannot be made up for.
func (t *tracking) keep() { t.ours = false }

// track prepares the connection's entry for a switch. Addresses that are
// translated on this host are not those on the wire.
func (s *Slot) track() abi.PathReason {
	s.tracking = tracking{}
	entry, err := conntrack.Find(s.sock.local, s.sock.remote)
	if err != nil {
		s.complain(err)
		return abi.PathReasonOk
	}
	if entry.Translated {
		return abi.PathReasonNat
	}
	s.tracking.tracked = true
	s.relaxTracking()
	s.tracking.ours = s.tracking.tracked && !entry.Liberal
	return abi.PathReasonOk
}

// relaxTracking makes the entry liberal and gives it its full time-out.
func (s *Slot) relaxTracking() {
	if !s.tracking.tracked {
		return
	}
	timeout, err := conntrack.Relax(s.sock.local, s.sock.remote)
	s.complain(err)
	s.tracking.tracked = !errors.Is(err, conntrack.ErrNotTracked)
	s.tracking.refreshed, s.tracking.every = time.Now(), trackingRefresh
	if timeout != 0 {
		s.tracking.every = min(trackingRefresh, timeout/refreshesInATime)
	}
}

func (s *Slot) refreshTracking(now time.Time) {
	if now.Sub(s.tracking.refreshed) >= s.tracking.every {
		s.relaxTracking()
	}
}

// restoreTracking takes back what was done for a switch that did not come.
func (s *Slot) restoreTracking() {
	if s.tracking.ours {
		s.complain(conntrack.Restore(s.sock.local, s.sock.remote))
	}
	s.tracking = tracking{}
}

// complain logs an error that no reason tells.
func (s *Slot) complain(err error) {
	if err != nil && !errors.Is(err, conntrack.ErrNotTracked) {
		s.env.Log.Warn("connection tracking", "slot", s.name(), "error", err)
	}
}
