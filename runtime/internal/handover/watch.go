// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/repair"
)

const (
	// Without progress for so many time-outs, kernel TCP shall find out
	// what is wrong (path MTU, next hop, route).
	stuckTimeouts = 2
	minimumRTO    = time.Second // RFC 6298 2.4
	// What was measured may be a repair, or nonsense.
	maximumRTO = 3 * time.Second
	// The program may change TCP_KEEPIDLE, which the kernel's socket keeps.
	keepIdleMemory = 5 * time.Second
)

// watch is what the timers remember of a fast connection.
type watch struct {
	una       uint32
	unaSince  time.Time
	fastSince time.Time
	asked     time.Time     // last PLEASE_DEMOTE of the timers
	idle      time.Duration // TCP_KEEPIDLE
	idleRead  time.Time     // when
}

func (w *watch) start(now time.Time) {
	*w = watch{unaSince: now, fastSince: now}
}

// Generation returns the generation if the connection is fast.
func (s *Slot) Generation() (generation uint32, fast bool) {
	if !s.mu.TryLock() {
		return 0, false // a switch goes on, which ends fast or otherwise
	}
	defer s.mu.Unlock()
	return s.generation, s.phase == abi.PhaseFast
}

// OnKernel says whether the connection is with the kernel and stays there: it
// is not fast, and no switch goes on.
func (s *Slot) OnKernel() bool {
	if !s.mu.TryLock() {
		return false
	}
	defer s.mu.Unlock()
	return s.phase != abi.PhaseFast
}

// CheckPeer sees to a fast connection whose socket the program has disconnected,
// or connected to somebody else: its segments would be kept from whoever has the
// addresses now. One system call, as it is done often.
func (s *Slot) CheckPeer() {
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	if s.phase == abi.PhaseFast && repair.Peer(s.fd) != s.sock.remote && !s.lostToOthers() {
		s.endedByOthers()
	}
}

// Check does the duties of the sleeping socket's timers. It returns why the
// connection should be demoted, or PathReasonOk.
func (s *Slot) Check(now time.Time) (generation uint32, reason abi.PathReason) {
	if !s.mu.TryLock() {
		return 0, abi.PathReasonOk
	}
	defer s.mu.Unlock()
	if s.phase != abi.PhaseFast {
		return 0, abi.PathReasonOk
	}
	if reason := s.endedByOthers(); reason != abi.PathReasonOk {
		return s.generation, reason
	}
	conn, err := s.env.Path.Read(s.index())
	if err != nil {
		s.env.Log.Error("connection record not read", "slot", s.name(), "error", err)
		return 0, abi.PathReasonOk
	}
	s.refreshTracking(now)
	reason = s.expired(&conn, now)
	if reason == abi.PathReasonOk || now.Sub(s.watch.asked) < minimumRTO {
		return 0, abi.PathReasonOk
	}
	s.watch.asked = now
	return s.generation, reason
}

func (s *Slot) expired(conn *abi.Conn, now time.Time) abi.PathReason {
	w := s.mem.Words()
	if conn.SndUna != s.watch.una || conn.SndUna == conn.SndNxt {
		s.watch.una, s.watch.unaSince = conn.SndUna, now
	}
	waiting := now.Sub(s.watch.unaSince)
	if waiting > stuckTimeouts*min(max(minimumRTO, rto(conn)), maximumRTO) {
		return abi.PathReasonRto
	}
	if limit := time.Duration(w.UserTimeout) * time.Millisecond; limit > 0 && waiting > limit {
		return abi.PathReasonKeepalive
	}
	if w.Keepalive != 0 && s.silence(conn, now) > s.keepIdle(now) {
		return abi.PathReasonKeepalive
	}
	return abi.PathReasonOk
}

// rto is RFC 6298 2.3.
func rto(conn *abi.Conn) time.Duration {
	return time.Duration(conn.SrttUs+4*conn.RttvarUs) * time.Microsecond
}

// silence is how long the peer has said nothing on the fast path.
func (s *Slot) silence(conn *abi.Conn, now time.Time) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil || conn.LastRxNs == 0 {
		return now.Sub(s.watch.fastSince)
	}
	return min(time.Duration(ts.Nano()-int64(conn.LastRxNs)), now.Sub(s.watch.fastSince))
}

func (s *Slot) keepIdle(now time.Time) time.Duration {
	if now.Sub(s.watch.idleRead) < keepIdleMemory {
		return s.watch.idle
	}
	seconds, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
	if err != nil {
		seconds = 7200 // Linux' default
	}
	s.watch.idle, s.watch.idleRead = time.Duration(seconds)*time.Second, now
	return s.watch.idle
}
