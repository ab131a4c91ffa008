// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"encoding/binary"
	"errors"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/die"
	"github.com/etran-go/etran/runtime/internal/ipsec"
	"github.com/etran-go/etran/runtime/internal/nexthop"
)

// Observe starts watching the connection of a socket, whose descriptor the
// slot takes over: XDP passes its segments and remembers what it saw. number is
// the descriptor in the program, as the program says. A connection that the
// program declines by its own rules (POLICY) is refused like one that ours
// exclude, an inherited one (FORK) while others have it.
func (s *Slot) Observe(fd, number int, said abi.PathReason) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.phase != abi.PhaseFree && s.phase != abi.PhaseRefused {
		s.closeSocket(fd)
		return ErrPhase
	}
	s.fd, s.note, s.sock = fd, Note{}, socket{}
	s.number, s.missed, s.alone = number, false, false
	if reason := s.observe(said); reason != abi.PathReasonOk {
		s.refuse(reason)
		return nil
	}
	s.mem.Claim(s.generation, uint32(s.conn.Ring))
	s.setPhase(abi.PhaseObserving)
	die.At("observing")
	return nil
}

func (s *Slot) refuse(reason abi.PathReason) {
	s.note.Reason = reason
	s.drop()
	s.env.Counters.Refused.Add(reason)
	s.mem.SetReason(reason)
	s.setPhase(abi.PhaseRefused)
}

func (s *Slot) observe(said abi.PathReason) abi.PathReason {
	var reason abi.PathReason
	if s.env.Stopping.Load() {
		return abi.PathReasonShutdown
	}
	if s.sock, reason = examine(s.fd, s.env, said == abi.PathReasonFork); reason != abi.PathReasonOk {
		return reason
	}
	s.note.Traffic = s.owner.Recall(s.sock.cookie)
	if said == abi.PathReasonPolicy || !s.env.Policy.AllowsConn(s.sock.local, s.sock.remote) {
		return abi.PathReasonPolicy
	}
	if reason = s.findDevice(); reason != abi.PathReasonOk {
		return reason
	}
	if reason = s.findPolicy(); reason != abi.PathReasonOk {
		return reason
	}
	// Early: it takes time, and is taken back if the switch never comes.
	if reason = s.track(); reason != abi.PathReasonOk {
		return reason
	}
	ring, reason := s.owner.Claim(s.device)
	if reason != abi.PathReasonOk {
		return reason
	}
	return s.install(ring)
}

func (s *Slot) findDevice() abi.PathReason {
	hop, err := s.env.Hops.Acquire(s.sock.local.Addr(), s.sock.remote.Addr())
	switch {
	case errors.Is(err, nexthop.ErrLocal):
		return abi.PathReasonLocal
	case errors.Is(err, nexthop.ErrNoDevice) && s.note.Traffic.FastSegsIn > 0:
		return abi.PathReasonRoute // it may come back as it went
	case errors.Is(err, nexthop.ErrNoDevice):
		return abi.PathReasonNoDevice
	case errors.Is(err, nexthop.ErrMultipath):
		return abi.PathReasonMultipath
	case err != nil:
		s.env.Log.Debug("no next hop", "slot", s.name(), "error", err)
		return abi.PathReasonNoHop
	}
	s.hop = hop
	device, served := s.env.Device(hop.Device)
	if !served {
		return abi.PathReasonDevice // of ours, but cannot be used just now
	}
	s.device = device
	return abi.PathReasonOk
}

// findPolicy looks for what IPsec does to the connection: the fast path's
// segments would go by it.
func (s *Slot) findPolicy() abi.PathReason {
	covered, err := ipsec.Covers(s.sock.local, s.sock.remote)
	switch {
	case err != nil:
		s.env.Log.Warn("IPsec policies not known", "slot", s.name(), "error", err)
		return abi.PathReasonSyscall
	case covered:
		return abi.PathReasonIpsec
	}
	return abi.PathReasonOk
}

// install makes the connection record and lets the flow find it.
func (s *Slot) install(ring uint16) abi.PathReason {
	s.generation = s.env.NextGeneration()
	s.conn = abi.Conn{
		Generation: s.generation,
		App:        s.app, Slot: s.slot, Transport: uint8(abi.TransportTcp),
		Laddr: netAddr(s.sock.local.Addr().As4()), Raddr: netAddr(s.sock.remote.Addr().As4()),
		Lport: netPort(s.sock.local.Port()), Rport: netPort(s.sock.remote.Port()),
		Device: uint32(s.device.Ifindex), Hop: s.hop.Index, Ring: ring,
		SndWscale: s.sock.options.SndWscale, RcvWscale: s.sock.options.RcvWscale,
		Flags: s.flags(),
	}
	die.At("observe-begun")
	s.begin()
	die.At("observe-journal")
	if err := s.env.Path.Install(s.index(), &s.conn); err != nil {
		s.env.Log.Error("connection record not written", "slot", s.name(), "error", err)
		return abi.PathReasonSyscall
	}
	s.state = abi.FlowStateNone
	die.At("observe-record")
	if _, err := s.setState(abi.FlowStateObserve); err != nil {
		s.env.Log.Error("flow not observed", "slot", s.name(), "error", err)
		return abi.PathReasonSyscall
	}
	die.At("observe-state")
	switch err := s.env.Path.AddFlow(s.key(), s.index()); {
	case errors.Is(err, ErrFlowExists):
		return abi.PathReasonSharedFile
	case err != nil:
		s.env.Log.Error("flow not added", "slot", s.name(), "error", err)
		return abi.PathReasonSyscall
	}
	s.flowAdded = true
	die.At("observe-flow")
	return abi.PathReasonOk
}

func (s *Slot) flags() uint32 {
	var flags uint32
	if s.sock.options.Timestamps {
		flags |= abi.ConnTimestamps
	}
	if s.device.VerifyChecksum {
		flags |= abi.ConnVerifyCsum
	}
	return flags
}

// Cancel ends the watching of a connection that was not switched.
func (s *Slot) Cancel() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.phase {
	case abi.PhaseObserving:
		s.drop()
		die.At("cancel-dropped")
	case abi.PhaseRefused: // both at the same time
	case abi.PhaseFree:
		// The request that it cancels was lost with a daemon, or it comes
		// for the second time.
		if s.mem.Phase() != abi.PhaseCancelReq {
			return ErrPhase
		}
	default:
		return ErrPhase
	}
	s.setPhase(abi.PhaseFree)
	return nil
}

// netAddr is an address as the packet has it.
func netAddr(a [4]byte) uint32 { return binary.NativeEndian.Uint32(a[:]) }

// netPort is a port as the packet has it.
func netPort(p uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p))
}
