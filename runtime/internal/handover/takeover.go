// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/frame"
	"github.com/etran-go/etran/runtime/internal/repair"
	"github.com/etran-go/etran/runtime/internal/seq"
	"github.com/etran-go/etran/runtime/internal/xsk"
)

// A program that does not do its part of a demotion is not waited for: the
// daemon seizes the connection. The protocol, and why it neither loses nor
// doubles an octet, is described at ETRAN_LOCK_SEIZED in
// c-abi/include/etran/arena.h.

const (
	// A stopped program cannot answer. One that runs is busy, or broken.
	stoppedPatience = 100 * time.Millisecond
	runningPatience = time.Second

	// Copies of the arena's words and buffers until one shows no change: a
	// library that follows the protocol needs two or three.
	copyTries = 64
)

// allTaken says whether the library has taken all data from the rings, and what
// was held since the freeze. Then there is nothing to wait for: on a busy
// machine the program may not run for milliseconds.
func (s *Slot) allTaken() (held []xsk.Frame, taken bool) {
	if !s.owner.AwaitRings() {
		return nil, false
	}
	held = s.owner.PeekRings(s.slot, s.generation)
	if slices.ContainsFunc(held, func(f xsk.Frame) bool { return abi.RxKind(f.Meta.Kind) == abi.RxKindData }) {
		return nil, false
	}
	return held, true
}

// awaitDrained waits for the library to take what its rings hold.
func (s *Slot) awaitDrained() bool {
	for waited := time.Duration(0); waited < runningPatience; waited += stoppedPatience {
		if s.mem.AwaitPhase(abi.PhaseFrozen, stoppedPatience) == abi.PhaseDrained {
			return true
		}
		if s.owner.Stopped() {
			return false
		}
	}
	return false
}

// Expect seizes the connection if the program, which was asked to demote it for
// a reason, has not done so in time.
func (s *Slot) Expect(reason abi.PathReason) {
	if !s.mu.TryLock() {
		return // a switch goes on
	}
	defer s.mu.Unlock()
	if s.phase != abi.PhaseFast || s.expected == s.generation {
		return
	}
	generation := s.generation
	s.expected = generation
	time.AfterFunc(stoppedPatience, func() {
		if _, fast := s.Generation(); fast && !s.owner.Stopped() {
			time.Sleep(runningPatience - stoppedPatience)
		}
		s.Seize(generation, reason)
	})
}

// Seize gives the connection back to the kernel without the library, if it is
// still fast.
func (s *Slot) Seize(generation uint32, reason abi.PathReason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expected == generation {
		s.expected = 0
	}
	if s.phase == abi.PhaseFast && s.generation == generation {
		conn := s.freeze()
		s.takeOver(&conn, reason, nil)
	}
}

// DemoteAlone ends the slot of a program that is gone, or that the daemon
// leaves.
func (s *Slot) DemoteAlone(reason abi.PathReason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.finish(reason)
}

// finish brings the slot to an end without the library, whatever phase it is
// in, and closes the daemon's copy of the file.
func (s *Slot) finish(reason abi.PathReason) {
	switch s.phase {
	case abi.PhaseFast:
		conn := s.freeze()
		s.takeOver(&conn, reason, nil)
	case abi.PhaseFrozen: // as the last daemon left it
		s.resume(reason, false)
		s.injectAlone()
	case abi.PhaseObserving:
		s.alone, s.note.Reason = true, reason
		s.removeFlow()
		s.mem.SetReason(reason)
		s.setPhase(abi.PhaseAborted)
	case abi.PhaseAborted, abi.PhaseDemoted, abi.PhaseDemoteFailed:
		s.injectAlone()
	}
	s.drop()
}

// takeOver demotes a connection whose flow is frozen. finish, if any, does
// something to the kernel's socket before the program may use it.
func (s *Slot) takeOver(conn *abi.Conn, reason abi.PathReason, finish func()) {
	s.env.Counters.Seized.Add(1)
	s.mem.Seize()
	if !s.owner.AwaitRings() {
		s.stuck("the rings do not show what was delivered to them")
	}
	c := s.collect(conn, s.owner.PeekRings(s.slot, s.generation))
	s.giveBack(conn, c, reason, finish)
	s.mem.Yield()
	s.injectAlone()
	s.drop()
}

// injectAlone gives the kernel all frames that were held, wherever they are.
// The flow is gone: there will be no more. Whatever the library puts aside
// afterwards is one of them.
func (s *Slot) injectAlone() {
	if s.alone {
		return
	}
	s.alone = true
	if !s.owner.AwaitRings() {
		s.stuck("the rings do not show what was held")
	}
	s.inject(s.heldFrames(s.owner.PeekRings(s.slot, s.generation)))
	s.dropStash()
}

// stuck counts what only a broken or hostile program can bring about. It goes
// on with what there is.
func (s *Slot) stuck(what string) {
	s.env.Counters.Stuck.Add(1)
	s.env.Log.Warn("connection seized from a program that breaks the protocol", "slot", s.name(), "what", what)
}

// collect copies all that is known of a frozen connection. ring are the frames
// that the library has not taken: looked at before the arena, so that whatever
// is not among them is in the arena.
func (s *Slot) collect(conn *abi.Conn, ring []xsk.Frame) *contents {
	acked := s.heldAck(conn, s.heldFrames(ring))
	c, chunks := s.copyArena(conn, acked)
	// A thread that lost its lock may still say, once, how far it has read,
	// and what it has read may then be overwritten.
	for try := 1; ; try++ {
		if w := s.mem.Words(); w.Snd == c.words.Snd && w.Rcv == c.words.Rcv {
			break
		}
		if try == copyTries {
			s.stuck("the arena changes all the time")
			break
		}
		c, chunks = s.copyArena(conn, acked)
	}
	for _, f := range ring {
		if abi.RxKind(f.Meta.Kind) == abi.RxKindData {
			chunks = append(chunks, chunk{seq.Num(f.Meta.Seq), f.Payload()})
		}
	}
	c.add(chunks, c.highest(conn))
	return c
}

// copyArena copies words and buffers once. chunks are what lies beyond a hole.
func (s *Slot) copyArena(conn *abi.Conn, acked seq.Num) (c *contents, chunks []chunk) {
	c = &contents{words: s.mem.Words()}
	w := &c.words
	c.ranges, c.sane = check(conn, *w, acked)
	c.unread = s.mem.CopyRcv(w.Rcv.Base, uint32(c.read), c.unreadLen())
	c.inFlight = s.mem.CopySnd(w.Snd.Base, uint32(c.sndUna), c.inFlightLen())
	c.unsent = s.mem.CopySnd(w.Snd.Base, uint32(c.sndNxt), c.unsentLen())
	if !c.sane {
		return c, nil
	}
	highest := c.highest(conn)
	for _, r := range w.Rcv.Beyond() {
		start, end := seq.Num(r.Start), seq.Num(r.End)
		if start.Minus(c.rcvNxt) >= 0 && start.Before(end) && !end.After(highest) {
			chunks = append(chunks, chunk{start, s.mem.CopyRcv(w.Rcv.Base, r.Start, end.Minus(start))})
		}
	}
	return c, chunks
}

// heldAck finds the highest acknowledgement among the frames held since the
// freeze: what it covers need not be sent again.
func (s *Slot) heldAck(conn *abi.Conn, held []frame.Segment) seq.Num {
	best := seq.Num(conn.SndUna)
	rcvNxt := seq.Num(conn.RcvNxt)
	for _, segment := range held {
		if !segment.HasAck || !segment.Seq.Between(rcvNxt.Add(-abi.RcvBuf), seq.Num(conn.RcvAdv)) {
			continue
		}
		if segment.Ack.After(best) && segment.Ack.Between(best, seq.Num(conn.SndNxt)) {
			best = segment.Ack
		}
	}
	return best
}

// injectBeyond gives the kernel the octets beyond a hole as the segments that
// they came in, more or less. The peer may have been told that we have them
// (RFC 2018 allows to forget them, but then only its time-out brings them back).
func (s *Slot) injectBeyond(conn *abi.Conn, beyond []chunk) {
	if len(beyond) == 0 {
		return
	}
	device, err := net.InterfaceByIndex(s.device.Ifindex)
	if err != nil || len(device.HardwareAddr) != len(conn.ObsMac) {
		s.env.Log.Debug("octets beyond a hole forgotten", "slot", s.name(), "error", err)
		return
	}
	h := frame.Header{
		Tuple:  frame.Tuple{Local: s.sock.local, Remote: s.sock.remote},
		Source: conn.ObsMac, Destination: [6]byte(device.HardwareAddr),
		Ack: seq.Num(conn.SndUna), Window: uint16(min(conn.SndWnd>>conn.SndWscale, maxUnscaled)),
	}
	size := min(max(int(conn.Mss), abi.TcpOptions), frame.LargestPayload)
	for _, c := range beyond {
		for from := 0; from < len(c.data); from += size {
			h.Seq = c.seq.Add(from)
			s.inject([]frame.Segment{frame.Build(h, c.data[from:min(from+size, len(c.data))])})
		}
	}
}

// Files says under which number a program has a file of the daemon's. last is
// the number it had before.
type Files func(fd, last int) (number int, ok bool)

// Audit asks whether the program still has the socket: one that closed it
// without the library's knowledge would leave it open for ever, as the daemon
// has it too. What it no longer has is given back to the kernel, and closed. A
// child that still has it finds a kernel's socket.
func (s *Slot) Audit(has Files) {
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	number, ok := has(s.fd, s.number)
	if ok {
		s.number, s.missed = number, false
		return
	}
	// The library says what it does before it closes, but that may be on its
	// way. Before it closes a fast connection it has an answer.
	if s.phase != abi.PhaseFast && !s.missed {
		s.missed = true
		return
	}
	s.env.Log.Debug("socket closed behind the library's back", "slot", s.name(), "phase", s.phase)
	s.env.Counters.ClosedBehind.Add(1)
	s.finish(abi.PathReasonClose)
}

// endedByOthers looks after what others do to the sleeping socket: `ss -K` ends it, a
// raw shutdown() closes its direction. Both have sent segments with numbers of
// the past; what is awake again does the same with the right ones. It returns
// the reason, or PathReasonOk.
func (s *Slot) endedByOthers() abi.PathReason {
	const closed = 7 // TCP_CLOSE
	info, err := repair.ReadInfo(s.fd)
	if err != nil || info.Established() {
		return abi.PathReasonOk
	}
	reason, finish := abi.PathReasonClose, func() { _ = unix.Shutdown(s.fd, unix.SHUT_WR) }
	if info.State == closed {
		reason, finish = abi.PathReasonDestroyed, s.destroy
		s.env.Counters.Destroyed.Add(1)
	} else {
		s.env.Counters.ClosedBehind.Add(1)
	}
	conn := s.freeze()
	s.takeOver(&conn, reason, finish)
	return reason
}

// destroy ends the restored connection as `ss -K` does.
func (s *Slot) destroy() {
	err := netlink.SocketDestroy(net.TCPAddrFromAddrPort(s.sock.local), net.TCPAddrFromAddrPort(s.sock.remote))
	if err != nil {
		s.env.Log.Warn("socket not destroyed", "slot", s.name(), "error", err)
	}
}
