// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/repair"
	"github.com/etran-go/etran/runtime/internal/seq"
)

// Demote gives the connection back to the kernel at the library's request.
func (s *Slot) Demote(reason abi.PathReason) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != abi.PhaseFast {
		return ErrPhase
	}
	start := time.Now()
	conn := s.freeze()
	if s.awaitDrained() {
		s.giveBack(&conn, s.collect(&conn, nil), reason, nil)
	} else {
		s.env.Log.Warn("program does not take what its rings hold", "slot", s.name(), "waited", time.Since(start))
		s.takeOver(&conn, reason, nil)
	}
	s.env.Counters.DemotePause.Add(time.Since(start))
	return nil
}

// freeze puts the flow into HOLD: XDP accepts nothing more.
func (s *Slot) freeze() abi.Conn {
	conn, err := s.setState(abi.FlowStateHold)
	if err != nil {
		// Our own record is not what we made it: there is nothing to
		// restore from but the arena.
		s.env.Log.Error("flow not frozen", "slot", s.name(), "error", err)
		conn = s.conn
	}
	s.setPhase(abi.PhaseFrozen)
	return conn
}

// giveBack rebuilds the kernel socket from the frozen record and what was
// found. finish, if any, does something to it before the program may use it.
func (s *Slot) giveBack(conn *abi.Conn, c *contents, reason abi.PathReason, finish func()) {
	if !c.sane {
		reason = abi.PathReasonProtocol
	}
	s.note.Reason = reason
	traffic := counters.Fast(conn)
	s.note.Traffic.Add(traffic)
	s.env.Counters.Demotions.Add(reason)
	s.mem.SetReason(reason)
	s.mem.SetTaken(c.words.Rcv.Read, c.words.Snd.End)

	plan := s.plan(conn, c)
	s.relaxTracking()
	plan.Sample = len(plan.InFlight)+len(plan.Unsent) > 0
	probe := plan.Sample || plan.RcvNxt != seq.Num(conn.RcvNxt) || reason == abi.PathReasonKeepalive
	err := s.restore(plan, probe, int(min(c.words.Keepalive, 1)), int(c.words.UserTimeout&(1<<31-1)))
	if err == nil && s.forged() {
		err = errForged
	}
	s.asleep = nil
	s.removeFlow()
	if err != nil {
		s.env.Log.Error("connection lost: the kernel socket could not be restored",
			"slot", s.name(), "local", s.sock.local, "remote", s.sock.remote, "error", err)
		repair.Abandon(s.fd)
	}
	// Together: what is live is counted there until the phase changes.
	s.env.Counters.End(traffic)
	if err != nil {
		s.setPhase(abi.PhaseDemoteFailed)
		return
	}
	s.injectBeyond(conn, c.beyond)
	if finish != nil {
		finish()
	}
	s.setPhase(abi.PhaseDemoted)
}

func (s *Slot) plan(conn *abi.Conn, c *contents) *repair.Plan {
	return &repair.Plan{
		Local: s.sock.local, Remote: s.sock.remote,
		Options: s.sock.options, TSOffset: conn.TsOffset,
		RcvNxt: c.rcvNxt, RightEdge: seq.Num(conn.RcvAdv), Unread: c.unread,
		SndUna: c.sndUna, InFlight: c.inFlight, Unsent: c.unsent,
		SndWnd: conn.SndWnd, MaxWnd: conn.MaxWnd,
	}
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
