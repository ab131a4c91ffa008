// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"fmt"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// The kernel socket of a fast connection does not sleep by itself. Its
// keepalive would reset the connection, because the peer's answers never reach
// it; so would its user timeout; and segments that come by a way without XDP
// would be acknowledged with numbers of the past.

// sleeper remembers how the socket was before it was put to sleep.
type sleeper struct {
	keepalive, userTimeout int
	filtered               bool
}

// asleep says whether a socket has the drop filter: whether it was put to sleep
// and not woken since. Only a filter that was not made from classic BPF
// refuses to be read.
func isAsleep(fd int) bool {
	_, err := optionLength(fd, unix.SOL_SOCKET, unix.SO_GET_FILTER, 0)
	return err == unix.EACCES
}

// open lets segments reach the socket again.
func (s *sleeper) open(fd int) error {
	if !s.filtered {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		return fmt.Errorf("detach the drop filter: %w", err)
	}
	s.filtered = false
	return nil
}

// putToSleep makes a socket with these options inert. The filter is a program
// that drops everything without an answer: the peer just sends again. After an
// error, wakeUp undoes what was done.
func putToSleep(fd, dropAll, keepalive, userTimeout int) (*sleeper, error) {
	s := &sleeper{keepalive: keepalive, userTimeout: userTimeout}
	// An acknowledgement that the kernel puts off would be sent later, with
	// numbers of the past. Even values leave the socket putting them off.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 2); err != nil {
		return s, fmt.Errorf("send a delayed acknowledgement: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, dropAll); err != nil {
		return s, fmt.Errorf("attach the drop filter: %w", err)
	}
	s.filtered = true
	return s, setTimers(fd, 0, 0, *s)
}

// wakeUp makes the socket live again, with these options.
func (s *sleeper) wakeUp(fd, keepalive, userTimeout int) error {
	if err := s.open(fd); err != nil {
		return err
	}
	return setTimers(fd, keepalive, userTimeout, sleeper{})
}

// setTimers sets both options; those that are so in `now` already are skipped.
func setTimers(fd, keepalive, userTimeout int, now sleeper) error {
	if keepalive != now.keepalive {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, keepalive); err != nil {
			return fmt.Errorf("set SO_KEEPALIVE to %d: %w", keepalive, err)
		}
	}
	if userTimeout != now.userTimeout {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, userTimeout); err != nil {
			return fmt.Errorf("set TCP_USER_TIMEOUT to %d: %w", userTimeout, err)
		}
	}
	return nil
}

// A segment that was between XDP and the socket when the socket fell asleep is
// no reason to go: it is lost and comes again, by the way of the others.
const strayTolerance = 1

// Strayed says whether segments of a fast connection reach its kernel socket
// by a way that XDP does not see. What it counted it does not count again.
func (s *Slot) Strayed() (generation uint32, strayed bool) {
	if !s.mu.TryLock() {
		return 0, false // looked at again after the next stray
	}
	defer s.mu.Unlock()
	if s.phase != abi.PhaseFast {
		return 0, false
	}
	n, err := s.env.Sockets.StraysOf(s.sock.cookie)
	if err != nil {
		s.env.Log.Error("strays not read", "slot", s.name(), "error", err)
		return 0, false
	}
	if n <= s.sock.strays+strayTolerance {
		return 0, false
	}
	s.sock.strays = n
	return s.generation, true
}
