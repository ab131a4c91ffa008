// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/repair"
)

// The program still has its socket, and no kernel lock keeps it from using it
// during a switch. A library leaves it alone; these functions are for programs
// that do not.

// errForged means that a socket was connected to somewhere else meanwhile.
var errForged = errors.New("the socket is another connection now")

// gone says that the socket is not the connection that was observed: it was
// disconnected, and others may have its addresses now.
func (s *Slot) gone() bool {
	local, remote, err := repair.Addresses(s.fd)
	return err != nil || local != s.sock.local || remote != s.sock.remote
}

// moved says that the socket is another connection.
func (s *Slot) moved() bool {
	local, remote, err := repair.Addresses(s.fd)
	return err == nil && (local != s.sock.local || remote != s.sock.remote)
}

// forged is to be asked after repair mode. A socket in repair mode can be
// connected to anywhere without a handshake; one that was is closed.
func (s *Slot) forged() bool {
	if !s.moved() {
		return false // if it is closed it can send nothing
	}
	s.env.Log.Warn("program connected its socket during a switch", "slot", s.name(),
		"local", s.sock.local, "remote", s.sock.remote)
	repair.Abandon(s.fd)
	return true
}

// lose ends a fast connection whose socket has moved: segments for its old
// addresses are the kernel's again at once.
func (s *Slot) lose() {
	const reason = abi.PathReasonNotEstablished
	conn := s.freeze()
	s.removeFlow()
	// The program may have made another use of the socket.
	if err := s.asleep.wakeUp(s.fd, s.asleep.keepalive, s.asleep.userTimeout); err != nil {
		s.env.Log.Debug("socket not woken", "slot", s.name(), "error", err)
	}
	s.asleep = nil
	traffic := counters.Fast(&conn)
	s.note.Reason = reason
	s.note.Traffic.Add(traffic)
	s.env.Counters.Demotions.Add(reason)
	s.mem.SetReason(reason)
	s.env.Counters.End(traffic)
	s.setPhase(abi.PhaseDemoteFailed)
}
