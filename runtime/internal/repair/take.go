// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/seq"
)

// Queues are the octets that a socket has: received and not read by the
// program, sent and not acknowledged, given by the program and not sent.
type Queues struct {
	Unread, InFlight, Unsent []byte
}

// SndUna is the sequence number of the oldest octet not acknowledged.
func (q *Queues) SndUna(d *State) seq.Num { return q.SndNxt(d).Add(-len(q.InFlight)) }

// SndNxt is the sequence number of the next octet to send.
func (q *Queues) SndNxt(d *State) seq.Num { return d.WriteSeq.Add(-len(q.Unsent)) }

// Empty says whether the socket had nothing.
func (q *Queues) Empty() bool { return len(q.Unread)+len(q.InFlight)+len(q.Unsent) == 0 }

// Plan is the plan for a socket as it was when it was dumped, with these queues.
func (d *State) Plan(local, remote netip.AddrPort, q *Queues) *Plan {
	return &Plan{
		Local: local, Remote: remote, Options: d.Options, TSOffset: d.TSOffset,
		RcvNxt: d.RcvNxt, Unread: q.Unread, RightEdge: d.RightEdge(),
		SndUna: q.SndUna(d), InFlight: q.InFlight, Unsent: q.Unsent,
		SndWnd: d.Window.SndWnd, MaxWnd: d.Window.MaxWindow,
	}
}

// Take reads the socket's queues and rebuilds it without them, so that none of
// its timers has a reason to run. Before that keep is called, to put the octets
// where they survive this process. unread and unacked are the most octets that
// either queue may have. On success the socket is as the dump says, with empty queues and out of repair
// mode. If rebuilt is true after an error, the connection is lost.
func Take(fd int, local, remote netip.AddrPort, d *State, unread, unacked int, keep func(*Queues)) (q Queues, rebuilt bool, err error) {
	reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return q, false, fmt.Errorf("read SO_REUSEADDR: %w", err)
	}
	if err := enter(fd); err != nil {
		return q, false, err
	}
	if err := q.peek(fd, unread, unacked); err != nil {
		return q, false, leaveAfter(fd, reuse, err)
	}
	keep(&q)
	if err := d.Plan(local, remote, &Queues{}).rebuild(fd); err != nil {
		return q, true, err
	}
	return q, true, Leave(fd, false, reuse)
}

func leaveAfter(fd, reuse int, err error) error {
	if leaveErr := Leave(fd, false, reuse); leaveErr != nil {
		return fmt.Errorf("%w; then: %w", err, leaveErr)
	}
	return err
}

// peek reads both queues. Each is read in one call, under the socket's lock:
// acknowledgements may still come in. What the kernel has not sent yet is the
// end of the send queue. That stays selected until the socket is disconnected:
// meanwhile a pacing timer counts as sent what it would send, and sends nothing.
// Else the peer could acknowledge more than we know to be sent, for ever.
func (q *Queues) peek(fd, unread, unacked int) error {
	var err error
	if q.Unread, err = peekQueue(fd, recvQueue, unread); err != nil {
		return err
	}
	if q.InFlight, err = peekQueue(fd, sendQueue, unacked); err != nil {
		return err
	}
	info, err := ReadInfo(fd)
	if err != nil {
		return err
	}
	sent := max(len(q.InFlight)-int(info.Notsent_bytes), 0)
	q.InFlight, q.Unsent = q.InFlight[:sent], q.InFlight[sent:]
	return nil
}

// peekQueue copies a queue of at most limit octets.
func peekQueue(fd, queue, limit int) ([]byte, error) {
	if err := setTCP(fd, unix.TCP_REPAIR_QUEUE, queue); err != nil {
		return nil, err
	}
	// One more, to see that there is no more.
	data := make([]byte, limit+1)
	n, _, err := unix.Recvfrom(fd, data, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err == unix.EAGAIN {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read queue %d: %w", queue, err)
	}
	if n > limit {
		return nil, fmt.Errorf("queue %d has more than %d octets", queue, limit)
	}
	return data[:n], nil
}
