// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"time"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/handover"
)

// timerInterval is often enough for a user time-out of seconds and for what
// happens behind the library's back, rare enough to cost nothing.
const timerInterval = 1500 * time.Millisecond

// runTimers does the duties of the sleeping sockets' timers.
func (m *Manager) runTimers(ctx context.Context) {
	ticker := time.NewTicker(timerInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			for _, a := range m.list() {
				// A program can make it last; the others do not wait.
				if a.checking.CompareAndSwap(false, true) {
					go func() {
						defer a.checking.Store(false)
						a.checkTimers(now)
						a.audit()
					}()
				}
			}
			m.checkStrays()
			for _, change := range m.path.CheckDevices(now) {
				m.deviceChanged(change)
			}
			m.emptyRetired()
		}
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
