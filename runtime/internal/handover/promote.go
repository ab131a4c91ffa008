// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
	"github.com/etran-go/etran/runtime/internal/die"
	"github.com/etran-go/etran/runtime/internal/repair"
	"github.com/etran-go/etran/runtime/internal/seq"
)

const (
	// How long a switch waits for segments that are between XDP and the
	// socket, or for the peer's acknowledgement, and how often it looks.
	settleTime = 200 * time.Microsecond
	settleNap  = 20 * time.Microsecond

	// More unread octets than that in the kernel would take too long to move
	// during the switch.
	maxUnread = 64 << 10

	ipAndTCPHeader = 40
	maxUnscaled    = 1<<16 - 1
)

// Switch moves the connection to the fast path. The library guarantees that
// nobody uses the socket meanwhile.
func (s *Slot) Switch() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.phase != abi.PhaseObserving {
		return ErrPhase
	}
	start := time.Now()
	reason := abi.PathReasonNotEstablished
	if !s.gone() { // or others' segments would be held
		reason = s.promote()
		if s.forged() {
			reason = abi.PathReasonProtocol
		}
	}
	if reason != abi.PathReasonOk {
		s.abort(reason)
		return nil
	}
	s.watch.start(start)
	s.tracking.keep()
	die.At("switch-active")
	s.setPhase(abi.PhaseFast)
	die.At("switch-fast")
	s.env.Counters.Promotions.Add(1)
	s.env.Counters.PromotePause.Add(time.Since(start))
	return nil
}

func (s *Slot) promote() abi.PathReason {
	if s.env.Stopping.Load() {
		return abi.PathReasonShutdown
	}
	if err := s.saveOptions(); err != nil {
		return s.failed(err)
	}
	die.At("switch-begun")
	seen, err := s.setState(abi.FlowStateHold)
	if err != nil {
		return s.failed(err)
	}
	die.At("switch-hold")
	if seen.Flags&abi.ConnObserved == 0 {
		return abi.PathReasonNotSeen
	}
	dump, reason := s.agree(seq.Num(seen.ObsEnd))
	if reason != abi.PathReasonOk {
		return reason
	}
	unread, err := unix.IoctlGetInt(s.fd, unix.SIOCINQ)
	if err != nil {
		return s.failed(err)
	}
	if unread > maxUnread {
		return abi.PathReasonBusy
	}
	die.At("switch-dumped")
	s.saveDump(dump)
	die.At("switch-journal")
	if reason := s.sleepAfter(dump); reason != abi.PathReasonOk {
		return reason
	}
	die.At("switch-asleep")
	queues, reason := s.takeQueues(dump, unread)
	if reason != abi.PathReasonOk {
		return reason
	}
	return s.activate(dump, &queues)
}

// takeQueues copies what the kernel socket has into the library's buffers. If
// there is unacknowledged data, the socket is emptied too: with any, its timers
// would run on. Unread octets alone stay until activate has stored them.
func (s *Slot) takeQueues(dump *repair.State, unread int) (q repair.Queues, reason abi.PathReason) {
	unacked, err := unix.IoctlGetInt(s.fd, unix.SIOCOUTQ)
	if err != nil {
		return q, s.failed(err)
	}
	if unacked == 0 {
		if q.Unread, err = readUnread(s.fd, unread, unix.MSG_PEEK); err != nil {
			return q, s.failed(err)
		}
		s.saveQueues(dump, &q)
		return q, abi.PathReasonOk
	}
	if unacked > abi.SndBuf {
		return q, abi.PathReasonUnsent
	}
	q, rebuilt, err := repair.Take(s.fd, s.sock.local, s.sock.remote, dump, maxUnread, unacked,
		func(q *repair.Queues) { s.saveQueues(dump, q) })
	if err == nil {
		die.At("switch-rebuilt")
		return q, abi.PathReasonOk
	}
	if rebuilt {
		s.env.Log.Error("connection lost: the kernel socket could not be emptied",
			"slot", s.name(), "local", s.sock.local, "remote", s.sock.remote, "error", err)
		repair.Abandon(s.fd)
	}
	return q, s.failed(err)
}

// errUnread means that the kernel's receive queue is not a plain run of octets
// (urgent data), or that somebody else reads it.
var errUnread = errors.New("unread octets of the socket cannot be moved")

// readUnread reads exactly n octets of the kernel's receive queue: MSG_PEEK
// copies them, MSG_TRUNC throws them away.
func readUnread(fd, n, flag int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	data := make([]byte, n)
	got, _, err := unix.Recvfrom(fd, data, flag|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("read %d unread octets: %w", n, err)
	}
	if got != n {
		return nil, fmt.Errorf("%w: %d of %d", errUnread, got, n)
	}
	return data, nil
}

// failed logs what cannot be told by a reason.
func (s *Slot) failed(err error) abi.PathReason {
	s.env.Log.Warn("switch failed", "slot", s.name(), "error", err)
	return abi.PathReasonSyscall
}

// agree reads the socket's state until the kernel has received exactly what
// XDP let pass. That is the proof that no segment is under way between the
// two; without it the connection stays where it is.
func (s *Slot) agree(seenEnd seq.Num) (*repair.State, abi.PathReason) {
	for deadline := time.Now().Add(settleTime); ; nap() {
		dump, err := repair.Dump(s.fd)
		if err != nil {
			return nil, s.failed(err)
		}
		if !dump.Established {
			return nil, abi.PathReasonNotEstablished
		}
		if dump.RcvNxt == seenEnd {
			return &dump, abi.PathReasonOk
		}
		if dump.RcvNxt.After(seenEnd) || time.Now().After(deadline) {
			return nil, abi.PathReasonMismatch
		}
	}
}

// sleepAfter puts the socket to sleep and makes sure that nothing reached it
// since the dump by a way that XDP does not see.
func (s *Slot) sleepAfter(dump *repair.State) abi.PathReason {
	var err error
	s.asleep, err = putToSleep(s.fd, s.env.Sockets.DropFilter(), s.entry.Keepalive, s.entry.UserTimeout)
	if err != nil {
		return s.failed(err)
	}
	info, err := repair.ReadInfo(s.fd)
	if err != nil {
		return s.failed(err)
	}
	if !info.Established() {
		return abi.PathReasonNotEstablished
	}
	if info.Bytes_received != dump.BytesReceived {
		return abi.PathReasonBusy
	}
	return abi.PathReasonOk
}

// activate fills the record and starts the fast path. Unread octets
// leave the kernel's queue only when the arena has them: a promoted connection
// never has any there.
func (s *Slot) activate(dump *repair.State, q *repair.Queues) abi.PathReason {
	record := s.conn
	if err := s.fillRecord(&record, dump, q); err != nil {
		return s.undo(dump, q, err)
	}
	window, err := receiveWindow(s.fd, dump.Options.RcvWscale)
	if err != nil {
		return s.undo(dump, q, err)
	}
	s.mem.Start(arena.Constants{
		Mss: uint32(record.Mss), RcvWindow: window,
		Keepalive: uint32(s.asleep.keepalive), UserTimeout: uint32(s.asleep.userTimeout),
	})
	if len(q.InFlight)+len(q.Unsent) == 0 {
		if err := s.consume(&record, len(q.Unread)); err != nil {
			return s.undo(dump, q, err)
		}
		die.At("switch-consumed")
	}
	if _, err := s.env.Path.Activate(s.index(), s.generation, &record); err != nil {
		return s.undo(dump, q, err)
	}
	s.sock.options = dump.Options
	s.conn, s.state = record, abi.FlowStateActive
	return abi.PathReasonOk
}

// consume takes n unread octets out of the kernel's queue. The room that this
// makes, the kernel may have promised to the peer at once.
func (s *Slot) consume(c *abi.Conn, n int) error {
	if n == 0 {
		return nil
	}
	if _, err := readUnread(s.fd, n, unix.MSG_TRUNC); err != nil {
		return err
	}
	die.At("switch-unread")
	d, err := repair.Dump(s.fd)
	if err != nil {
		return err
	}
	c.RcvAdv = uint32(seq.Max(seq.Num(c.RcvAdv), d.RightEdge()))
	return nil
}

// data is what the arena gets of the socket's queues.
func data(dump *repair.State, q *repair.Queues) arena.Data {
	return arena.Data{
		SndUna: uint32(q.SndUna(dump)), SndNxt: uint32(q.SndNxt(dump)), RcvNxt: uint32(dump.RcvNxt),
		Unacked: slices.Concat(q.InFlight, q.Unsent), Unread: q.Unread,
	}
}

// undo puts what was taken back into the kernel socket.
func (s *Slot) undo(dump *repair.State, q *repair.Queues, cause error) abi.PathReason {
	if q.Empty() {
		return s.failed(cause)
	}
	if err := s.restore(s.planBack(dump, q), true, s.asleep.keepalive, s.asleep.userTimeout); err != nil {
		s.env.Log.Error("connection lost: a switch could not be undone",
			"slot", s.name(), "local", s.sock.local, "remote", s.sock.remote, "error", err)
		repair.Abandon(s.fd)
	}
	s.asleep = nil
	return s.failed(cause)
}

// planBack is the plan for a socket as it was when it was dumped.
func (s *Slot) planBack(dump *repair.State, q *repair.Queues) *repair.Plan {
	return dump.Plan(s.sock.local, s.sock.remote, q)
}

func (s *Slot) fillRecord(c *abi.Conn, d *repair.State, q *repair.Queues) error {
	tos, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_TOS)
	if err != nil {
		return err
	}
	ttl, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_TTL)
	if err != nil {
		return err
	}
	c.SndUna, c.SndNxt = uint32(q.SndUna(d)), uint32(q.SndNxt(d))
	c.SndWnd, c.MaxWnd = d.Window.SndWnd, max(d.Window.MaxWindow, d.Window.SndWnd)
	c.SndWl1, c.SndWl2 = d.Window.SndWl1, c.SndUna
	c.RcvNxt, c.RcvHigh = uint32(d.RcvNxt), uint32(d.RcvNxt)
	// The right edge never moves back, even if the kernel's window shrank.
	c.RcvAdv = uint32(seq.Max(d.RightEdge(), d.RcvNxt))
	c.SndWscale, c.RcvWscale = d.Options.SndWscale, d.Options.RcvWscale
	c.TsOffset = d.TSOffset
	if d.Options.SACK {
		c.Flags |= abi.ConnSack
	}
	c.Tos, c.Ttl = uint8(tos), uint8(ttl)
	c.Mss = uint16(segmentSize(d, s.device.MTU))
	return nil
}

// segmentSize is the payload of one of our segments, which always carry
// twelve octets of options.
func segmentSize(d *repair.State, mtu int) int {
	size := min(int(d.Options.MSSClamp), mtu-ipAndTCPHeader)
	if d.PathMTU != 0 {
		size = min(size, int(d.PathMTU)-ipAndTCPHeader)
	}
	return size - abi.TcpOptions
}

// receiveWindow bounds what the library may offer: what the kernel can take
// back at a demotion, and what the window field can say.
func receiveWindow(fd int, wscale uint8) (uint32, error) {
	limit, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return 0, err
	}
	window := max(limit/2, 64<<10) // the kernel doubles what was set
	return uint32(min(window, abi.RcvBuf, maxUnscaled<<wscale)), nil
}

// abort leaves the connection with the kernel. Held segments are re-injected
// when the library asks for it.
func (s *Slot) abort(reason abi.PathReason) {
	if s.asleep != nil {
		if err := s.asleep.wakeUp(s.fd, s.asleep.keepalive, s.asleep.userTimeout); err != nil {
			s.env.Log.Error("socket not woken", "slot", s.name(), "error", err)
		}
		s.asleep = nil
	}
	die.At("abort-awake")
	s.removeFlow()
	die.At("abort-removed")
	s.note.Reason = reason
	s.env.Counters.Aborted.Add(reason)
	s.mem.SetReason(reason)
	s.setPhase(abi.PhaseAborted)
	die.At("aborted")
}

// nap sleeps as exactly as the kernel can; Go's timers are too coarse.
func nap() {
	ts := unix.NsecToTimespec(settleNap.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil) // interrupted: look again earlier
}
