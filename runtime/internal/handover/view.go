// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/nexthop"
)

// view is what others may know of a slot without waiting for its lock: whoever
// holds that may be inside a system call on the program's socket, which the
// program can make last as long as it likes.
type view struct {
	phase      abi.Phase
	generation uint32
	open       bool // the slot has a socket
	sock       socket
	hop        nexthop.Hop
	device     int
	note       Note
}

// show publishes the slot as it is now; s.mu is held.
func (s *Slot) show() {
	n := s.note
	n.Phase, n.State = s.phase, s.state
	n.Local, n.Remote, n.Cookie = s.sock.local, s.sock.remote, s.sock.cookie
	s.seen.Store(&view{
		phase: s.phase, generation: s.generation, open: s.fd >= 0,
		sock: s.sock, hop: s.hop, device: s.device.Ifindex, note: n,
	})
}

// carried says whether XDP has counters of the connection that nobody has
// added up yet.
func (v *view) carried() bool { return v.phase == abi.PhaseFast || v.phase == abi.PhaseFrozen }

// fast returns the connection's counters since its promotion.
func (s *Slot) fast(v *view) (counters.Traffic, uint32) {
	if !v.carried() {
		return counters.Traffic{}, 0
	}
	conn, err := s.env.Path.Read(s.index())
	if err != nil || conn.Generation != v.generation {
		return counters.Traffic{}, 0
	}
	return counters.Fast(&conn), conn.SrttUs
}

// LiveTraffic is what a fast connection has moved since its promotion.
func (s *Slot) LiveTraffic() counters.Traffic {
	traffic, _ := s.fast(s.seen.Load())
	return traffic
}

// Note describes the connection as after its last change of phase; ok is false
// if the slot has none.
func (s *Slot) Note() (n Note, ok bool) {
	v := s.seen.Load()
	n = v.note
	s.addTraffic(&n, v)
	return n, v.open
}

// addTraffic adds what is counted elsewhere.
func (s *Slot) addTraffic(n *Note, v *view) {
	w := s.mem.Words()
	n.Traffic.KernelBytesIn += w.KernelBytesIn
	n.Traffic.KernelBytesOut += w.KernelBytesOut
	traffic, srtt := s.fast(v)
	n.Traffic.Add(traffic)
	n.SRTTUs = srtt
}

// Cookie returns the socket's cookie if the slot has a socket.
func (s *Slot) Cookie() (cookie uint64, ok bool) {
	v := s.seen.Load()
	return v.sock.cookie, v.open
}

// OnDevice says whether the connection is fast on a device.
func (s *Slot) OnDevice(ifindex int) (generation uint32, ok bool) {
	v := s.seen.Load()
	return v.generation, v.phase == abi.PhaseFast && v.device == ifindex
}

// Rerouted says whether the connection is fast and its route is not what it
// was.
func (s *Slot) Rerouted(look *nexthop.Look) (generation uint32, rerouted bool) {
	v := s.seen.Load()
	if v.phase != abi.PhaseFast {
		return 0, false
	}
	return v.generation, !look.Still(v.hop, v.sock.local.Addr(), v.sock.remote.Addr())
}

// closeSocket drops a descriptor of the program's socket. If it is the last
// one and the program has set SO_LINGER, the kernel waits for the peer: here
// nobody waits for long, nor do many threads.
func (s *Slot) closeSocket(fd int) {
	linger, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
	if err != nil || linger.Onoff == 0 || linger.Linger == 0 { // 0: resets at once
		unix.Close(fd)
		return
	}
	if s.env.closing.Add(1) > maxLingering {
		// The kernel sends what there is without us as well.
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
	}
	closed := make(chan struct{})
	go func() {
		unix.Close(fd)
		s.env.closing.Add(-1)
		close(closed)
	}()
	select {
	case <-closed: // not the last one, as a rule
	case <-time.After(lingerPatience):
	}
}

const (
	maxLingering   = 64
	lingerPatience = 50 * time.Millisecond
)
