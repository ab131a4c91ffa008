// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/frame"
	"github.com/etran-go/etran/runtime/internal/repair"
	"github.com/etran-go/etran/runtime/internal/seq"
)

// drainPatience bounds the wait for a library that said it wants to demote and
// then does not take what its rings hold.
const drainPatience = time.Second

// Demote gives the connection back to the kernel at the library's request.
func (s *Slot) Demote(reason abi.PathReason) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != abi.PhaseFast {
		return ErrPhase
	}
	start := time.Now()
	conn, err := s.setState(abi.FlowStateHold)
	if err != nil {
		// Our own record is not what we made it: there is nothing to
		// restore from but the arena.
		s.env.Log.Error("flow not frozen", "slot", s.name(), "error", err)
		conn = s.conn
	}
	s.setPhase(abi.PhaseFrozen)
	if s.mem.AwaitPhase(abi.PhaseFrozen, drainPatience) != abi.PhaseDrained {
		s.env.Counters.Stuck.Add(1)
		s.env.Log.Warn("program does not take what its rings hold", "slot", s.name(), "waited", drainPatience)
	}
	s.giveBack(&conn, reason)
	s.env.Counters.DemotePause.Add(time.Since(start))
	return nil
}

// DemoteAlone gives the connection of a program that is gone back to the
// kernel, whatever phase it is in, and ends the slot. What the program's rings still hold is lost
// to it, but was never acknowledged: the peer sends it again.
func (s *Slot) DemoteAlone(reason abi.PathReason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.phase == abi.PhaseFast {
		conn, err := s.setState(abi.FlowStateHold)
		if err != nil {
			s.env.Log.Error("flow not frozen", "slot", s.name(), "error", err)
			conn = s.conn
		}
		s.env.Counters.DeathUnproven.Add(1)
		s.setPhase(abi.PhaseFrozen)
		s.giveBack(&conn, reason)
	}
	s.reinjectHeld()
	s.drop()
}

// giveBack rebuilds the kernel socket from the frozen record and the arena.
func (s *Slot) giveBack(conn *abi.Conn, reason abi.PathReason) {
	plan, words, sane := s.plan(conn)
	if !sane {
		reason = abi.PathReasonProtocol
	}
	s.note.Reason = reason
	traffic := counters.Fast(conn)
	s.note.Traffic.Add(traffic)
	s.env.Counters.End(traffic)
	s.env.Counters.Demotions.Add(reason)
	s.mem.SetReason(reason)

	probe := len(plan.InFlight) > 0 || plan.RcvNxt != seq.Num(conn.RcvNxt) || reason == abi.PathReasonKeepalive
	err := s.restore(plan, probe, words.keepalive, words.userTimeout)
	s.asleep = nil
	s.removeFlow()
	if err != nil {
		s.env.Log.Error("connection lost: the kernel socket could not be restored",
			"slot", s.name(), "local", s.sock.local, "remote", s.sock.remote, "error", err)
		repair.Abandon(s.fd)
		s.setPhase(abi.PhaseDemoteFailed)
		return
	}
	s.setPhase(abi.PhaseDemoted)
}

// options are the program's own, as the library says they are now.
type options struct{ keepalive, userTimeout int }

// plan copies what the arena has of the connection and checks it.
func (s *Slot) plan(conn *abi.Conn) (*repair.Plan, options, bool) {
	w := s.mem.Words()
	r, sane := check(conn, w, s.heldAck(conn))
	p := &repair.Plan{
		Local: s.sock.local, Remote: s.sock.remote,
		Options: s.sock.options, TSOffset: conn.TsOffset,
		RcvNxt: r.rcvNxt, RightEdge: seq.Num(conn.RcvAdv),
		Unread:   s.mem.CopyRcv(w.Rcv.Base, uint32(r.read), r.unread()),
		SndUna:   r.sndUna,
		InFlight: s.mem.CopySnd(w.Snd.Base, uint32(r.sndUna), r.inFlight()),
		Unsent:   s.mem.CopySnd(w.Snd.Base, uint32(r.sndNxt), r.unsent()),
		SndWnd:   conn.SndWnd, MaxWnd: conn.MaxWnd,
	}
	o := options{keepalive: int(min(w.Keepalive, 1)), userTimeout: int(w.UserTimeout & (1<<31 - 1))}
	return p, o, sane
}

// heldAck finds the highest acknowledgement among the frames held since the
// freeze: what it covers need not be sent again.
func (s *Slot) heldAck(conn *abi.Conn) seq.Num {
	best := seq.Num(conn.SndUna)
	rcvNxt := seq.Num(conn.RcvNxt)
	for _, h := range s.arena.Held(s.slot, s.generation) {
		segment, ok := s.heldSegment(h.Addr, h.Length)
		if !ok || !segment.HasAck || !segment.Seq.Between(rcvNxt.Add(-abi.RcvBuf), seq.Num(conn.RcvAdv)) {
			continue
		}
		if segment.Ack.After(best) && segment.Ack.Between(best, seq.Num(conn.SndNxt)) {
			best = segment.Ack
		}
	}
	return best
}

func (s *Slot) heldSegment(addr uint64, length uint32) (frame.Segment, bool) {
	raw, ok := s.owner.Frame(addr, length)
	if !ok {
		return frame.Segment{}, false
	}
	segment, err := frame.Parse(raw, frame.Tuple{Local: s.sock.local, Remote: s.sock.remote})
	if err != nil {
		s.env.Log.Debug("held frame refused", "slot", s.name(), "error", err)
		return segment, false
	}
	return segment, true
}

// restore rebuilds the socket, wakes it and lets segments reach it again. The
// flow goes before the repair mode ends: the answer to the probe must not be
// held.
func (s *Slot) restore(p *repair.Plan, probe bool, keepalive, userTimeout int) error {
	reuse, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return err
	}
	if err := p.Rebuild(s.fd); err != nil {
		return err
	}
	if err := s.asleep.wakeUp(s.fd, keepalive, userTimeout); err != nil {
		return err
	}
	s.removeFlow()
	if err := repair.Leave(s.fd, probe, reuse); err != nil {
		return err
	}
	err = p.Send(s.fd)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil // the peer has ended it meanwhile, as it may
	}
	return err
}
