// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"cmp"
	"slices"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
	"github.com/etran-go/etran/runtime/internal/die"
	"github.com/etran-go/etran/runtime/internal/frame"
	"github.com/etran-go/etran/runtime/internal/xsk"
)

// Reinject gives the kernel the frames that were held during the switch, in
// the order they came, and forgets the slot.
func (s *Slot) Reinject() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.phase {
	case abi.PhaseFast:
		// Its demotion waited too long for a daemon: the program has given
		// the connection up, and waits no more.
		conn := s.freeze()
		s.takeOver(&conn, abi.PathReasonRestart, nil)
	case abi.PhaseFree:
		// Its end was a dead daemon's, who forgot it before it could answer.
		if s.mem.Phase() != abi.PhaseReinjectReq {
			return ErrPhase
		}
	case abi.PhaseAborted, abi.PhaseDemoted, abi.PhaseDemoteFailed:
	default:
		return ErrPhase
	}
	if !s.alone {
		s.inject(s.heldFrames(nil))
	}
	s.dropStash()
	die.At("reinject-injected")
	s.drop()
	die.At("reinject-dropped")
	s.alone = false
	s.setPhase(abi.PhaseFree)
	return nil
}

// heldFrames returns the held segments of the slot's own connection: the memory
// they lie in is the program's, and it must not speak for others. First those
// that the library has put aside, in the order they came, then those that its
// rings still have. ring was copied before the stash is looked at: a frame may
// be in both, but is not in neither.
func (s *Slot) heldFrames(ring []xsk.Frame) []frame.Segment {
	if s.generation == 0 {
		return nil
	}
	var held []frame.Segment
	add := func(raw []byte) {
		segment, err := frame.Parse(raw, frame.Tuple{Local: s.sock.local, Remote: s.sock.remote})
		if err != nil {
			s.env.Log.Debug("held frame refused", "slot", s.name(), "error", err)
			return
		}
		held = append(held, segment)
	}
	stash := s.arena.Held(s.slot, s.generation)
	slices.SortFunc(stash, func(a, b arena.Held) int { return cmp.Compare(int32(a.Order-b.Order), 0) })
	for _, h := range stash {
		if raw, ok := s.owner.Frame(h.Addr, h.Length); ok {
			add(raw)
		}
	}
	for _, f := range ring {
		if k := abi.RxKind(f.Meta.Kind); k == abi.RxKindHeld || k == abi.RxKindCtl {
			add(f.Data)
		}
	}
	return held
}

// inject gives segments to the kernel as if they had come from the device.
func (s *Slot) inject(segments []frame.Segment) {
	if len(segments) == 0 || s.gone() {
		return // the addresses may be another's now
	}
	for _, segment := range segments {
		if !segment.CompleteChecksum() {
			s.env.Log.Debug("held frame was changed on its way", "slot", s.name())
			continue
		}
		if err := s.env.Path.Inject(s.device.Ifindex, segment.Frame); err != nil {
			s.env.Log.Warn("held frame lost", "slot", s.name(), "error", err)
		}
	}
}

// dropStash lets the library have the frames that it put aside.
func (s *Slot) dropStash() {
	for _, h := range s.arena.Held(s.slot, s.generation) {
		s.arena.Drop(h.Index)
	}
}
