// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"cmp"
	"slices"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
)

// Reinject gives the kernel the frames that were held during the switch, in
// the order they came, and forgets the slot.
func (s *Slot) Reinject() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.phase {
	case abi.PhaseAborted, abi.PhaseDemoted, abi.PhaseDemoteFailed:
	default:
		return ErrPhase
	}
	s.reinjectHeld()
	s.drop()
	s.setPhase(abi.PhaseFree)
	return nil
}

// reinjectHeld passes on only segments of the slot's own connection: the
// memory they lie in is the program's, and it must not speak for others.
func (s *Slot) reinjectHeld() {
	if s.generation == 0 {
		return
	}
	held := s.arena.Held(s.slot, s.generation)
	slices.SortFunc(held, func(a, b arena.Held) int {
		return cmp.Compare(int32(a.Order-b.Order), 0)
	})
	for _, h := range held {
		if segment, ok := s.heldSegment(h.Addr, h.Length); ok {
			segment.CompleteChecksums()
			if err := s.env.Path.Inject(s.device.Ifindex, segment.Frame); err != nil {
				s.env.Log.Warn("held frame lost", "slot", s.name(), "error", err)
			}
		}
		s.arena.Drop(h.Index)
	}
}
