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

// same says whether the socket has the addresses that were observed; the error
// means that it has none.
func (s *Slot) same() (bool, error) {
	local, remote, err := repair.Addresses(s.fd)
	return local == s.sock.local && remote == s.sock.remote, err
}

// gone says that the socket is not the connection that was observed: it was
// disconnected, and others may have its addresses now.
func (s *Slot) gone() bool {
	same, err := s.same()
	return err != nil || !same
}

// moved says that the socket is another connection.
func (s *Slot) moved() bool {
	same, err := s.same()
	return err == nil && !same
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

// lostToOthers ends a fast connection whose socket has moved: segments for its
// old addresses are the kernel's again at once. False: it has not.
func (s *Slot) lostToOthers() bool {
	if !s.moved() {
		return false
	}
	conn := s.freeze()
	s.removeFlow()
	// The program may have made another use of the socket.
	if err := s.asleep.wakeUp(s.fd, s.asleep.keepalive, s.asleep.userTimeout); err != nil {
		s.env.Log.Debug("socket not woken", "slot", s.name(), "error", err)
	}
	s.asleep = nil
	s.account(&conn, abi.PathReasonNotEstablished)
	s.env.Counters.End(counters.Fast(&conn))
	s.setPhase(abi.PhaseDemoteFailed)
	return true
}
