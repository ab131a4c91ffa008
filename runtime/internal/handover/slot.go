// SPDX-License-Identifier: Apache-2.0

// Package handover moves a connection from the kernel to the fast path and
// back: one Slot per connection of an application, with the state machine of
// c-abi/include/etran/arena.h.
package handover

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
	"github.com/etran-go/etran/runtime/internal/config"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/nexthop"
	"github.com/etran-go/etran/runtime/internal/xsk"
)

// DataPath is what a switch needs of the eBPF programs and their maps.
type DataPath interface {
	// Install writes a whole record, whose state is NONE.
	Install(index uint32, conn *abi.Conn) error
	// SetState changes the state under the record's lock and returns the
	// record as it is then.
	SetState(index, generation uint32, from, to abi.FlowState) (abi.Conn, error)
	// Activate takes the numbers of a dump over and starts the fast path.
	Activate(index, generation uint32, dump *abi.Conn) (abi.Conn, error)
	// Read returns the record for statistics.
	Read(index uint32) (abi.Conn, error)
	// AddFlow fails with ErrFlowExists if the flow is somebody's already.
	AddFlow(key abi.FlowKey, index uint32) error
	// HasFlow says whether the flow is directed to this record.
	HasFlow(key abi.FlowKey, index uint32) (bool, error)
	DeleteFlow(key abi.FlowKey) error
	// Hop reads a next hop.
	Hop(index uint16) (abi.Hop, error)
	// Inject gives a frame to the kernel as if it had come from the device.
	Inject(ifindex int, frame []byte) error
}

// ErrFlowExists means that a flow has a connection record already.
var ErrFlowExists = errors.New("flow is in the table already")

// Device is what a switch needs to know of a served device.
type Device struct {
	Ifindex        int
	MTU            int
	VerifyChecksum bool
}

// Owner is the application that a slot belongs to.
type Owner interface {
	// Claim makes sure that the application has rings on the device, and
	// returns its first one. PathReasonOk or why not.
	Claim(device Device) (ring uint16, reason abi.PathReason)
	// Frame copies a frame of the application's memory, checking the place.
	Frame(addr uint64, length uint32) ([]byte, bool)
	// AwaitRings waits until the application's receive rings show all that XDP
	// has accepted so far; false: they do not.
	AwaitRings() bool
	// PeekRings copies the frames of a slot that the rings hold and the
	// library has not taken. What it has taken by then is in the arena for
	// those who look there afterwards.
	PeekRings(slot uint16, generation uint32) []xsk.Frame
	// Stopped says whether every thread of the program is stopped.
	Stopped() bool
	// Wake makes the application's threads look at their slots.
	Wake()
	// Remember keeps what is known of a socket when its slot ends, for tools;
	// Recall finds its traffic when another slot takes it up.
	Remember(Note)
	Recall(cookie uint64) counters.Traffic
}

// Sockets is what a switch needs of the eBPF programs about kernel sockets.
type Sockets interface {
	// DropFilter is a socket filter that drops everything and counts it. It
	// is loaded once: a classic filter would be compiled at every switch,
	// which interrupts all processors.
	DropFilter() int
	// StraysOf is how many segments the filter dropped for the socket with a
	// cookie.
	StraysOf(cookie uint64) (uint64, error)
	// Inspect looks into a socket.
	Inspect(fd int) (abi.SockTrait, error)
}

// Env is what all slots of the daemon share.
type Env struct {
	Path     DataPath
	Hops     *nexthop.Table
	Device   func(ifindex int) (Device, bool)
	Policy   *config.Policy
	Counters *counters.Counters
	Journal  Journal
	Log      *slog.Logger
	Sockets  Sockets
	// NetnsCookie is the network namespace that the daemon serves.
	NetnsCookie uint64
	// Stopping: nothing is promoted any more.
	Stopping atomic.Bool
	// closing counts descriptors that are being closed, see closeSocket.
	closing atomic.Int32
	// NextGeneration returns a number that no slot had before, never 0.
	NextGeneration func() uint32
}

// ErrPhase means that a request does not fit the slot's phase: the program
// does not follow the protocol.
var ErrPhase = errors.New("request does not fit the slot's phase")

// Slot is one connection of an application.
type Slot struct {
	env   *Env
	owner Owner
	arena *arena.Arena
	mem   arena.Slot
	app   uint16
	slot  uint16

	// mu is held during every step of a switch; system calls on the
	// program's socket may block under it, so nobody takes it for two slots.
	mu sync.Mutex
	// phase is the daemon's own: the one in the arena can be anything.
	phase      abi.Phase
	generation uint32
	state      abi.FlowState
	fd         int
	sock       socket
	hop        nexthop.Hop
	device     Device
	conn       abi.Conn // the record as installed
	flowAdded  bool
	asleep     *sleeper
	entry      entry // in the journal; the zero value if there is none
	watch      watch
	tracking   tracking
	note       Note
	number     int    // the socket's descriptor in the program, as last seen
	missed     bool   // the program did not have it at the last audit
	expected   uint32 // generation that the program was asked to demote, 0 none
	alone      bool   // the switch was ended without the library, which may still ask for REINJECT
	ended      bool   // the application is gone: nothing is begun any more

	seen atomic.Pointer[view]
}

// NewSlot makes the daemon's side of a slot.
func NewSlot(env *Env, owner Owner, a *arena.Arena, app, slot uint16) *Slot {
	s := &Slot{env: env, owner: owner, arena: a, mem: a.Slot(uint32(slot)), app: app, slot: slot, fd: -1}
	s.show()
	return s
}

// transitions are the daemon's: phases that the library sets on its own
// account (a request, or FREE after REFUSED) are none.
var transitions = map[abi.Phase][]abi.Phase{
	abi.PhaseFree:         {abi.PhaseObserving, abi.PhaseRefused, abi.PhaseFree},
	abi.PhaseRefused:      {abi.PhaseObserving, abi.PhaseRefused, abi.PhaseFree},
	abi.PhaseObserving:    {abi.PhaseFast, abi.PhaseAborted, abi.PhaseFree},
	abi.PhaseFast:         {abi.PhaseFrozen},
	abi.PhaseFrozen:       {abi.PhaseDemoted, abi.PhaseDemoteFailed},
	abi.PhaseAborted:      {abi.PhaseFree},
	abi.PhaseDemoted:      {abi.PhaseFree},
	abi.PhaseDemoteFailed: {abi.PhaseFree},
}

// setPhase is the one setter of the phase.
func (s *Slot) setPhase(to abi.Phase) {
	if !slices.Contains(transitions[s.phase], to) {
		panic(fmt.Sprintf("handover: phase %d to %d", s.phase, to))
	}
	s.phase = to
	s.show()
	s.mem.SetPhase(to)
	switch to {
	case abi.PhaseFast, abi.PhaseAborted, abi.PhaseRefused, abi.PhaseDemoted, abi.PhaseDemoteFailed:
		s.owner.Wake()
	}
}

// index is the slot's connection record.
func (s *Slot) index() uint32 { return uint32(s.app)*abi.AppSlots + uint32(s.slot) }

// setState moves the flow's state, which only the daemon does.
func (s *Slot) setState(to abi.FlowState) (abi.Conn, error) {
	conn, err := s.env.Path.SetState(s.index(), s.generation, s.state, to)
	if err != nil {
		return conn, fmt.Errorf("flow state %d to %d: %w", s.state, to, err)
	}
	s.state = to
	return conn, nil
}

// removeFlow takes the flow out of the data path: segments pass again.
func (s *Slot) removeFlow() {
	if s.flowAdded {
		if err := s.env.Path.DeleteFlow(s.key()); err != nil {
			s.env.Log.Error("flow not removed", "slot", s.name(), "error", err)
		}
		s.flowAdded = false
	}
	if s.state != abi.FlowStateNone {
		if _, err := s.setState(abi.FlowStateNone); err != nil {
			s.env.Log.Error("flow state not reset", "slot", s.name(), "error", err)
			s.state = abi.FlowStateNone
		}
	}
}

// drop forgets the socket and all that was acquired for it.
func (s *Slot) drop() {
	if s.sock.cookie != 0 {
		s.owner.Remember(s.describe())
	}
	s.removeFlow()
	s.restoreTracking()
	s.forget()
	if s.hop != (nexthop.Hop{}) {
		s.env.Hops.Release(s.hop)
		s.hop = nexthop.Hop{}
	}
	if s.fd >= 0 {
		s.closeSocket(s.fd)
		s.fd = -1
	}
	s.show()
}

func (s *Slot) key() abi.FlowKey {
	return abi.FlowKey{
		Ifindex: uint32(s.device.Ifindex),
		Raddr:   s.conn.Raddr, Laddr: s.conn.Laddr,
		Rport: s.conn.Rport, Lport: s.conn.Lport,
	}
}

func (s *Slot) name() string { return fmt.Sprintf("%d:%d", s.app, s.slot) }

// Note is what tools want to know of a connection; it can be read while a
// switch goes on.
type Note struct {
	Phase         abi.Phase
	State         abi.FlowState
	Reason        abi.PathReason
	Local, Remote netip.AddrPort
	Cookie        uint64
	SRTTUs        uint32
	// Traffic of the connection's whole life, as far as it is known.
	Traffic counters.Traffic
}

// describe is Note while s.mu is held.
func (s *Slot) describe() Note {
	s.show()
	n, _ := s.Note()
	return n
}

// Index is the slot's number within its application.
func (s *Slot) Index() uint32 { return uint32(s.slot) }
