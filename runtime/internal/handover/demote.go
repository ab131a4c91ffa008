// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/die"
	"github.com/etran-go/etran/runtime/internal/repair"
	"github.com/etran-go/etran/runtime/internal/seq"
)

// Demote gives the connection back to the kernel at the library's request.
// Its generation keeps a request that comes twice from meaning the slot's next
// connection.
func (s *Slot) Demote(generation uint32, reason abi.PathReason) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != abi.PhaseFast || s.generation != generation {
		return ErrPhase
	}
	start := time.Now()
	conn := s.freeze()
	if held, taken := s.allTaken(); taken || s.awaitDrained() {
		die.At("demote-drained")
		s.giveBack(&conn, s.collect(&conn, held), reason, nil)
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
	die.At("demote-hold")
	s.setPhase(abi.PhaseFrozen)
	die.At("demote-frozen")
	return conn
}

// giveBack rebuilds the kernel socket from the frozen record and what was
// found. finish, if any, does something to it before the program may use it.
func (s *Slot) giveBack(conn *abi.Conn, c *contents, reason abi.PathReason, finish func()) {
	if !c.sane {
		reason = abi.PathReasonProtocol
	}
	s.account(conn, reason)
	s.mem.SetTaken(c.words.Rcv.Read, c.words.Snd.End)

	plan := s.plan(conn, c)
	s.relaxTracking()
	plan.Sample = len(plan.InFlight)+len(plan.Unsent) > 0
	probe := plan.Sample || plan.RcvNxt != seq.Num(conn.RcvNxt) || reason == abi.PathReasonKeepalive
	err := s.restore(plan, probe, int(min(c.words.Keepalive, 1)), int(c.words.UserTimeout&(1<<31-1)))
	if err == nil && s.forged() {
		err = errForged
	}
	s.demoted(conn, c, err, finish)
}

// demoted ends a demotion that went well or failed.
func (s *Slot) demoted(conn *abi.Conn, c *contents, err error, finish func()) {
	s.asleep = nil
	s.removeFlow()
	if err != nil {
		s.env.Log.Error("connection lost: the kernel socket could not be restored",
			"slot", s.name(), "local", s.sock.local, "remote", s.sock.remote, "error", err)
		repair.Abandon(s.fd)
	}
	// Together: what is live is counted there until the phase changes.
	s.env.Counters.End(counters.Fast(conn))
	if err != nil {
		s.setPhase(abi.PhaseDemoteFailed)
		return
	}
	s.injectBeyond(conn, c.beyond)
	if finish != nil {
		finish()
	}
	s.setPhase(abi.PhaseDemoted)
	die.At("demoted")
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

// restore gives the kernel socket its state and lets segments reach it again.
// The order lets another daemon go on from any point (see adopt.go): as long as
// the filter is on, nothing that the socket was given has been sent, and it can
// be rebuilt from scratch; once it is off, the socket's own numbers say how much
// of the unsent octets it has, until the program is told and gives it more. The
// probe comes when the flow is gone: its answer must not be held.
func (s *Slot) restore(p *repair.Plan, probe bool, keepalive, userTimeout int) error {
	reuse, err := s.reuse()
	if err != nil {
		return err
	}
	if err := p.Rebuild(s.fd); err != nil {
		return err
	}
	die.At("restore-rebuilt")
	if err := setTimers(s.fd, keepalive, userTimeout, sleeper{}); err != nil {
		return err
	}
	die.At("restore-timers")
	if err := repair.Leave(s.fd, false, reuse); err != nil {
		return err
	}
	die.At("restore-left")
	if err := s.asleep.open(s.fd); err != nil {
		return err
	}
	die.At("restore-awake")
	return s.complete(p, probe, reuse)
}

// complete ends the flow and sends what the socket has not got yet: the
// acknowledgements come back to it at once.
func (s *Slot) complete(p *repair.Plan, probe bool, reuse int) error {
	s.removeFlow()
	die.At("restore-removed")
	err := p.Send(s.fd)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		err = nil // the peer has ended it meanwhile, as it may
	}
	die.At("restore-sent")
	if probe && err == nil {
		if probeErr := repair.Probe(s.fd, reuse); probeErr != nil {
			// The peer's own segments or our timers do the same, later.
			s.env.Log.Warn("peer not probed", "slot", s.name(), "error", probeErr)
		}
	}
	return err
}

// reuse is SO_REUSEADDR as the program set it: in the repair mode the kernel
// has another value there, and afterwards none.
func (s *Slot) reuse() (int, error) {
	now, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return 0, err
	}
	if now == 1 {
		return now, nil
	}
	return s.entry.Reuse, nil
}
