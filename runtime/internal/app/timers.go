// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"time"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/handover"
)

const (
	// A program that has disconnected its socket keeps others from its
	// addresses for so long.
	timerInterval = 500 * time.Millisecond
	// All else is looked at in one of so many turns: often enough for a user
	// time-out of seconds, rare enough to cost nothing.
	thoroughTurns = 3
)

// runTimers does the duties of the sleeping sockets' timers.
func (m *Manager) runTimers(ctx context.Context) {
	ticker := time.NewTicker(timerInterval)
	defer ticker.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			m.look(now, turn%thoroughTurns == 0)
		}
	}
}

func (m *Manager) look(now time.Time, thorough bool) {
	for _, a := range m.list() {
		// A program can make it last; the others do not wait.
		if a.checking.CompareAndSwap(false, true) {
			go func() {
				defer a.checking.Store(false)
				a.look(now, thorough)
			}()
		}
	}
	if !thorough {
		return
	}
	m.checkStrays()
	for _, change := range m.path.CheckDevices(now) {
		m.deviceChanged(change)
	}
	m.emptyRetired()
}

func (a *App) look(now time.Time, thorough bool) {
	for _, s := range a.activeSlots() {
		s.CheckPeer()
	}
	if thorough {
		a.checkTimers(now)
		a.audit()
	}
}

func (a *App) checkTimers(now time.Time) {
	for _, s := range a.activeSlots() {
		if generation, reason := s.Check(now); reason != abi.PathReasonOk {
			a.m.log.Debug("a timer asks for a demotion", "app", a.id, "slot", s.Index(), "reason", reason.String())
			a.please(abi.MsgTypePleaseDemote, s, generation, reason)
		}
	}
}

// checkStrays has connections demoted whose segments come by another way than
// XDP's. It looks at each only if there were any.
func (m *Manager) checkStrays() {
	n, err := m.path.Sockets().Strays()
	if err != nil {
		m.log.Error("strays not read", "error", err)
		return
	}
	if n == m.strays {
		return
	}
	m.strays = n
	for _, a := range m.list() {
		a.pleaseDemote(abi.PathReasonStray, (*handover.Slot).Strayed)
	}
}
