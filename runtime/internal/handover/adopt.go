// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/repair"
)

// A new daemon goes on where the last one died, between any two steps of a
// switch. What it finds, in the order of trust: the journal (entry) and the
// connection record, which only daemons write; the socket; the arena's octets
// and phase word, which the program can write.
//
//	record      journal   the daemon died in          what is done
//	another's   begun     observe, before Install     REFUSED
//	NONE        begun     observe, before OBSERVE     REFUSED
//	OBSERVE     begun     observe; or nothing going   OBSERVING; a lost flow is added, a
//	                                                  SWITCH that was lost: ABORTED
//	HOLD, no    begun     promote, before or in the   repair mode off, ABORTED
//	MSS                   dump
//	HOLD, no    dump      promote, before the socket  awake with the options of the journal,
//	MSS                   was touched; putToSleep     ABORTED
//	HOLD, no    queues    promote, the socket's       rebuilt from the arena as the dump says,
//	MSS                   queues may be gone; undo    ABORTED
//	ACTIVE      any       nothing going; promote or   FAST; a DEMOTE_REQ is carried out
//	                      demote, before FROZEN
//	HOLD, MSS   any       demote, before the flow     filter on: from FROZEN again; filter off:
//	                      was removed                 the socket's write sequence says how much
//	                                                  it has, the rest is sent; DEMOTED
//	NONE        dump      abort or demote, after the  program not told: the rest is sent, as
//	                      flow was removed            above; ABORTED or DEMOTED; then REINJECT
//	                                                  as ever
//
// MSS: only ETRAN_CTL_ACTIVATE sets it, so it tells a promotion's HOLD from a
// demotion's. A filter that is on proves that nothing the socket was given has
// left it, so a Rebuild may be repeated. Until the program is told that the
// kernel has the connection, nobody else gives the socket octets to send.

// Recovery is how a slot was found.
type Recovery string

// What became of a slot of the last daemon.
const (
	RecoveredRefused   Recovery = "refused"
	RecoveredObserving Recovery = "observing"
	RecoveredFast      Recovery = "fast"
	RecoveredAborted   Recovery = "promotion_undone"
	RecoveredDemoting  Recovery = "demotion_resumed"
	RecoveredDemoted   Recovery = "demoted"
)

// Adopt takes a slot over from the journal. The descriptor is the slot's from
// then on. It does not yet look at what the connection needs: see Recover.
func Adopt(env *Env, owner Owner, a *arena.Arena, blob []byte, fd int) (*Slot, error) {
	var e entry
	if err := json.Unmarshal(blob, &e); err != nil {
		return nil, fmt.Errorf("journal entry: %w", err)
	}
	if e.Slot < abi.FirstSlot || e.Slot >= abi.AppSlots || e.Generation == 0 {
		return nil, fmt.Errorf("journal entry of slot %d, generation %d: %w", e.Slot, e.Generation, ErrPhase)
	}
	s := NewSlot(env, owner, a, e.App, e.Slot)
	s.entry, s.fd, s.generation = e, fd, e.Generation
	s.sock = socket{local: e.Local, remote: e.Remote, cookie: e.Cookie, options: e.Options}
	s.hop = e.Hop
	s.device = Device{Ifindex: e.Device}
	if d, served := env.Device(e.Device); served {
		s.device = d
	}
	hop, err := env.Path.Hop(e.Hop.Index)
	if err != nil {
		return nil, err
	}
	env.Hops.Adopt(e.Hop, &hop)
	s.save()
	return s, nil
}

// AdoptedSlot reads which slot of which application a journal entry is about.
func AdoptedSlot(blob []byte) (app, slot uint16, err error) {
	var e entry
	if err := json.Unmarshal(blob, &e); err != nil {
		return 0, 0, fmt.Errorf("journal entry: %w", err)
	}
	return e.App, e.Slot, nil
}

// Record is the index of the slot's connection record.
func (s *Slot) Record() uint32 { return s.index() }

// LastGeneration is the one that the slot was adopted with.
func (s *Slot) LastGeneration() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation
}

// AbandonSocket ends the connection of a socket that cannot be adopted, if it
// cannot go on by itself.
func AbandonSocket(fd int) {
	if on, err := repair.Repairing(fd); isAsleep(fd) || err == nil && on {
		repair.Abandon(fd)
	}
}

// Recover goes on from where the last daemon died. It waits for nobody: a
// demotion that needs the program is resumed by Resume.
func (s *Slot) Recover() (Recovery, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.show()
	conn, err := s.env.Path.Read(s.index())
	if err != nil {
		return "", err
	}
	if conn.Generation != s.generation {
		s.conn = abi.Conn{}
		return s.recoverBegun()
	}
	s.conn, s.state = conn, abi.FlowState(conn.State)
	if s.flowAdded, err = s.env.Path.HasFlow(s.key(), s.index()); err != nil {
		return "", err
	}
	activated := conn.Mss != 0
	switch {
	case s.state == abi.FlowStateActive:
		return s.recoverFast()
	case s.state == abi.FlowStateHold && activated:
		s.phase, s.asleep = abi.PhaseFrozen, s.sleeper()
		return RecoveredDemoting, nil
	case s.state == abi.FlowStateHold:
		return s.recoverSwitch()
	case s.state == abi.FlowStateObserve:
		return s.recoverObserving()
	case s.entry.Dump == nil:
		return s.recoverBegun()
	case activated:
		return s.recoverDemoted()
	default:
		return s.recoverAborted()
	}
}

// sleeper is what putToSleep remembered.
func (s *Slot) sleeper() *sleeper {
	return &sleeper{s.entry.Keepalive, s.entry.UserTimeout, isAsleep(s.fd)}
}

// recoverBegun: the request to observe was not answered, or the watching was
// just about to end.
func (s *Slot) recoverBegun() (Recovery, error) {
	cancelled := s.mem.Phase() == abi.PhaseCancelReq
	s.drop()
	if cancelled {
		s.setPhase(abi.PhaseFree)
	} else {
		s.note.Reason = abi.PathReasonRestart
		s.mem.SetReason(abi.PathReasonRestart)
		s.setPhase(abi.PhaseRefused)
	}
	return RecoveredRefused, nil
}

func (s *Slot) recoverObserving() (Recovery, error) {
	if !s.flowAdded {
		if err := s.env.Path.AddFlow(s.key(), s.index()); err != nil {
			return s.recoverBegun()
		}
		s.flowAdded = true
	}
	s.resumeTracking()
	phase := s.mem.Phase()
	if _, served := s.env.Device(s.device.Ifindex); !served && phase != abi.PhaseCancelReq {
		s.phase = abi.PhaseObserving
		s.abort(abi.PathReasonDevice)
		return RecoveredAborted, nil
	}
	switch phase {
	case abi.PhaseObserveReq:
		s.mem.Claim(s.generation, uint32(s.conn.Ring))
		s.setPhase(abi.PhaseObserving)
	case abi.PhaseSwitchReq:
		s.phase = abi.PhaseObserving
		s.abort(abi.PathReasonRestart)
		return RecoveredAborted, nil
	default:
		s.phase = abi.PhaseObserving
	}
	return RecoveredObserving, nil
}

// recoverSwitch undoes a promotion.
func (s *Slot) recoverSwitch() (Recovery, error) {
	s.phase = abi.PhaseObserving
	if s.entry.Dump != nil {
		s.asleep = s.sleeper()
	}
	err := s.awaken()
	if err != nil {
		s.env.Log.Error("connection lost: its promotion could not be undone", "slot", s.name(), "error", err)
		repair.Abandon(s.fd)
	}
	s.abort(abi.PathReasonRestart)
	return RecoveredAborted, err
}

// awaken makes the kernel socket what it was before the promotion; the filter
// and the timers are abort's, except after a rebuild.
func (s *Slot) awaken() error {
	q := s.savedQueues()
	switch {
	case q.Empty():
		return s.leaveRepair(false)
	case s.asleep.filtered:
		err := s.restore(s.planBack(s.entry.Dump, &q), true, s.asleep.keepalive, s.asleep.userTimeout)
		s.asleep = nil
		return err
	default:
		err := s.resumeSend(s.planBack(s.entry.Dump, &q), true)
		s.asleep = nil
		return err
	}
}

func (s *Slot) leaveRepair(probe bool) error {
	on, err := repair.Repairing(s.fd)
	if err != nil || !on {
		return err
	}
	reuse, err := s.reuse()
	if err != nil {
		return err
	}
	return repair.Leave(s.fd, probe, reuse)
}

// resumeSend ends a restoration whose socket was awake already: the next octet
// that the socket expects from the program tells what it has.
func (s *Slot) resumeSend(p *repair.Plan, probe bool) error {
	if err := s.leaveRepair(false); err != nil {
		return err
	}
	reuse, err := s.reuse()
	if err != nil {
		return err
	}
	dump, err := repair.Dump(s.fd)
	if err != nil {
		return err
	}
	unsent := p.SndUna.Add(len(p.InFlight))
	missing := unsent.Add(len(p.Unsent)).Minus(dump.WriteSeq)
	if !dump.Established || missing < 0 || missing > len(p.Unsent) {
		missing = 0 // ended meanwhile, by a timer or an operator
	}
	p.Unsent = p.Unsent[len(p.Unsent)-missing:]
	return s.complete(p, probe, reuse)
}

func (s *Slot) recoverFast() (Recovery, error) {
	s.phase, s.asleep = abi.PhaseFast, s.sleeper()
	s.watch.start(time.Now())
	s.resumeTracking()
	if s.mem.Phase() == abi.PhaseSwitchReq {
		s.mem.SetPhase(abi.PhaseFast)
		s.owner.Wake()
	}
	return RecoveredFast, nil
}

// resumeTracking: the last daemon made the entry liberal, if there is one; what
// it was before is not known any more, so it stays.
func (s *Slot) resumeTracking() {
	s.tracking.tracked = true
	s.relaxTracking()
}

// recoverDemoted: the flow is gone, and the socket has everything unless the
// program was not told: it may lack unsent octets then.
func (s *Slot) recoverDemoted() (kind Recovery, err error) {
	s.removeFlow()
	s.phase = abi.PhaseDemoted
	switch s.mem.Phase() {
	case abi.PhaseDemoteReq, abi.PhaseFrozen, abi.PhaseDrained:
		err = s.resumeSend(s.plan(&s.conn, s.collect(&s.conn, nil)), true)
		s.account(&s.conn, s.mem.Reason())
		s.mem.SetPhase(abi.PhaseDemoted)
		s.mem.YieldSeized()
		s.owner.Wake()
	case abi.PhaseDemoteFailed:
		s.phase = abi.PhaseDemoteFailed
	}
	return RecoveredDemoted, err
}

// recoverAborted: the same for a promotion that was undone.
func (s *Slot) recoverAborted() (kind Recovery, err error) {
	s.removeFlow()
	s.phase = abi.PhaseAborted
	switch s.mem.Phase() {
	case abi.PhaseReinjectReq, abi.PhaseAborted:
		return RecoveredAborted, nil
	case abi.PhaseSwitchReq:
		if q := s.savedQueues(); !q.Empty() {
			err = s.resumeSend(s.planBack(s.entry.Dump, &q), true)
		}
	}
	s.mem.SetReason(abi.PathReasonRestart)
	s.mem.SetPhase(abi.PhaseAborted)
	s.owner.Wake()
	return RecoveredAborted, err
}

// Resume ends a demotion that the last daemon had begun.
func (s *Slot) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != abi.PhaseFrozen {
		return
	}
	if p := s.mem.Phase(); p != abi.PhaseFrozen && p != abi.PhaseDrained {
		s.mem.SetPhase(abi.PhaseFrozen)
	}
	s.resume(s.mem.Reason(), s.awaitDrained())
}

// resume goes on with a demotion. drained: the arena has all that the rings had.
func (s *Slot) resume(reason abi.PathReason, drained bool) {
	conn, err := s.env.Path.Read(s.index())
	if err != nil {
		conn = s.conn
	}
	switch {
	case !s.asleep.filtered:
		c := s.collect(&conn, nil)
		s.account(&conn, reason)
		s.demoted(&conn, c, s.resumeSend(s.plan(&conn, c), true), nil)
		s.mem.YieldSeized()
	case drained:
		s.giveBack(&conn, s.collect(&conn, nil), reason, nil)
		s.mem.YieldSeized()
	default:
		s.takeOver(&conn, reason, nil)
	}
}

// account counts a demotion.
func (s *Slot) account(conn *abi.Conn, reason abi.PathReason) {
	s.note.Reason = reason
	s.note.Traffic.Add(counters.Fast(conn))
	s.env.Counters.Demotions.Add(reason)
	s.mem.SetReason(reason)
}

// Requested carries out what the program asked for while no daemon heard it.
// The library sends nothing meanwhile. A request whose message was lost is
// answered as if it had been refused; the library tries again.
func (s *Slot) Requested() {
	var err error
	switch p := s.mem.Phase(); p {
	case abi.PhaseObserveReq:
		err = s.refuseLost()
	case abi.PhaseCancelReq:
		err = s.Cancel()
	case abi.PhaseSwitchReq:
		err = s.abortLost()
	case abi.PhaseDemoteReq:
		err = s.Demote(s.generation, s.mem.Reason())
	case abi.PhaseReinjectReq:
		err = s.Reinject()
	}
	s.disown()
	if err != nil && !errors.Is(err, ErrPhase) {
		s.env.Log.Warn("a request of the last daemon's time failed", "slot", s.name(), "error", err)
	}
}

// disown answers for a connection that nobody remembers, because the keeper was
// lost together with the last daemon.
func (s *Slot) disown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != abi.PhaseFree {
		return
	}
	switch s.mem.Phase() {
	case abi.PhaseObserving, abi.PhaseSwitchReq:
		s.phase = abi.PhaseAborted
	case abi.PhaseFast, abi.PhaseDemoteReq, abi.PhaseFrozen, abi.PhaseDrained:
		s.phase = abi.PhaseDemoteFailed
	case abi.PhaseReinjectReq, abi.PhaseCancelReq:
	default:
		return
	}
	s.show()
	s.mem.SetReason(abi.PathReasonRestart)
	s.mem.SetPhase(s.phase)
	s.owner.Wake()
}

func (s *Slot) refuseLost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != abi.PhaseFree && s.phase != abi.PhaseRefused {
		return ErrPhase
	}
	s.refuse(abi.PathReasonRestart)
	return nil
}

func (s *Slot) abortLost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != abi.PhaseObserving {
		return ErrPhase
	}
	s.abort(abi.PathReasonRestart)
	return nil
}
