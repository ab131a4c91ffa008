// SPDX-License-Identifier: Apache-2.0

// Package repair reads the state of an established TCP socket out of the
// kernel and writes a newer one back into the same socket, with the kernel's
// TCP_REPAIR options. Nobody else may use the socket meanwhile: a send() during
// the repair mode lands in the socket's own receive queue.
package repair

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/die"
	"github.com/etran-go/etran/runtime/internal/seq"
)

// Queues of a socket in repair mode (enum in linux/tcp.h).
const (
	noQueue   = 0
	recvQueue = 1
	sendQueue = 2
)

// State is what the kernel knows of a connection.
type State struct {
	// RcvNxt is the next octet expected, WriteSeq the one after the last
	// octet that the program gave: SND.NXT when nothing is in flight.
	RcvNxt, WriteSeq seq.Num
	Window           Window
	Options          Options
	// TSOffset: our next TSval is at least milliseconds since boot plus it.
	TSOffset uint32
	// Before the sequences were read:
	Established   bool
	BytesReceived uint64
	PathMTU       uint32
}

// RightEdge is the first sequence number beyond what the kernel has promised
// the peer to take.
func (d *State) RightEdge() seq.Num { return seq.Num(d.Window.RcvWup + d.Window.RcvWnd) }

// Window is struct tcp_repair_window.
type Window struct {
	SndWl1    uint32
	SndWnd    uint32
	MaxWindow uint32
	RcvWnd    uint32
	RcvWup    uint32
}

// Options are those negotiated by the handshake.
type Options struct {
	// MSSClamp is the payload of a segment without options, as negotiated.
	MSSClamp             uint32
	Timestamps, SACK     bool
	WindowScale          bool
	SndWscale, RcvWscale uint8
}

// Dump reads the state of the socket, in the shortest repair window there can
// be: the receive sequence, which is the one that races, comes first.
func Dump(fd int) (State, error) {
	var s State
	info, err := ReadInfo(fd)
	if err != nil {
		return s, err
	}
	s.Options = info.Negotiated()
	s.Established, s.BytesReceived, s.PathMTU = info.Established(), info.Bytes_received, info.Pmtu
	reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return s, fmt.Errorf("read SO_REUSEADDR: %w", err)
	}
	if err := enter(fd); err != nil {
		return s, err
	}
	die.At("dump-repairing")
	err = s.read(fd)
	if leaveErr := Leave(fd, false, reuse); err == nil {
		err = leaveErr
	}
	return s, err
}

func (s *State) read(fd int) error {
	for _, q := range []struct {
		queue int
		value *seq.Num
	}{{recvQueue, &s.RcvNxt}, {sendQueue, &s.WriteSeq}} {
		if err := setTCP(fd, unix.TCP_REPAIR_QUEUE, q.queue); err != nil {
			return err
		}
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		if err != nil {
			return fmt.Errorf("read TCP_QUEUE_SEQ of queue %d: %w", q.queue, err)
		}
		*q.value = seq.Num(uint32(v))
	}
	if err := setTCP(fd, unix.TCP_REPAIR_QUEUE, noQueue); err != nil {
		return err
	}
	if err := getWindow(fd, &s.Window); err != nil {
		return err
	}
	mss, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG)
	if err != nil {
		return fmt.Errorf("read TCP_MAXSEG: %w", err)
	}
	s.Options.MSSClamp = uint32(mss)
	return s.readTimestamp(fd)
}

// readTimestamp asks for the time first and adds one: the kernel clears the
// lowest bit of what it answers, and a TSval that goes back is dropped by the
// peer as old (RFC 7323, PAWS).
func (s *State) readTimestamp(fd int) error {
	now := uptimeMs()
	ts, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
	if err != nil {
		return fmt.Errorf("read TCP_TIMESTAMP: %w", err)
	}
	s.TSOffset = uint32(ts) + 1 - now
	return nil
}

// Plan is the state to write into a socket.
type Plan struct {
	Local, Remote netip.AddrPort
	Options       Options
	TSOffset      uint32

	// RcvNxt is the next octet expected from the peer; Unread are the octets
	// before it that the program has not read yet.
	RcvNxt seq.Num
	Unread []byte
	// RightEdge is the end of the window that the peer was offered.
	RightEdge seq.Num

	// SndUna is the oldest octet not acknowledged; InFlight were sent from
	// there on. Unsent follow and are sent by Send, after Leave.
	SndUna           seq.Num
	InFlight, Unsent []byte
	SndWnd, MaxWnd   uint32

	// Sample makes the kernel take a round-trip time from the answer to the
	// probe of Leave. Without one it waits for a second before it looks after
	// what is in flight, and for three before it sends that again. It takes
	// the time since the segment whose timestamp the peer echoes: the last
	// one that came in order, which should have been sent just before.
	Sample bool
}

// Rebuild gives the socket its new state. It leaves the socket in repair mode,
// for Leave; after an error the connection is lost and the socket closed.
func (p *Plan) Rebuild(fd int) error {
	if err := enter(fd); err != nil {
		return err
	}
	return p.rebuild(fd)
}

// rebuild is Rebuild for a socket in repair mode already.
func (p *Plan) rebuild(fd int) error {
	if err := disconnect(fd); err != nil {
		return fmt.Errorf("disconnect: %w", err)
	}
	die.At("rebuild-disconnected")
	// The disconnect may have reset what the repair mode forces on.
	if err := enter(fd); err != nil {
		return err
	}
	for _, step := range []func(int) error{
		p.reconnect, p.setOptions, p.fillReceiveQueue, p.fillSendQueue, p.setWindow,
	} {
		if err := step(fd); err != nil {
			return err
		}
		die.At("rebuild-step")
	}
	return nil
}

func (p *Plan) reconnect(fd int) error {
	err := p.bindAndConnect(fd)
	if err != nil {
		err = withoutRoute(fd, func() error { return p.bindAndConnect(fd) }, err)
	}
	if err != nil {
		return err
	}
	if local, _, err := Addresses(fd); err != nil || local != p.Local {
		return fmt.Errorf("reconnected from %v instead of %v (%v)", local, p.Local, err)
	}
	return nil
}

func (p *Plan) bindAndConnect(fd int) error {
	err := unix.Bind(fd, sockaddr(p.Local))
	// EINVAL: an earlier bind has locked the port, which the socket then kept.
	if err != nil && err != unix.EINVAL {
		return fmt.Errorf("bind %v: %w", p.Local, err)
	}
	for _, q := range []struct {
		queue int
		value seq.Num
	}{{recvQueue, p.RcvNxt.Add(-len(p.Unread))}, {sendQueue, p.SndUna.Add(-len(p.sample()))}} {
		if err := setTCP(fd, unix.TCP_REPAIR_QUEUE, q.queue); err != nil {
			return err
		}
		if err := setTCP(fd, unix.TCP_QUEUE_SEQ, int(int32(q.value))); err != nil {
			return err
		}
	}
	if err := setTCP(fd, unix.TCP_REPAIR_QUEUE, noQueue); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(p.Remote)); err != nil {
		return fmt.Errorf("reconnect to %v: %w", p.Remote, err)
	}
	return nil
}

// loopback is the ifindex of the loopback device in every network namespace.
const loopback = 1

// withoutRoute lets f connect although there is no route, or the address is not
// this host's just now: a link is down, an administrator is at work. A socket
// that is connected survives that; one that is being rebuilt must, too. Bound to
// the loopback device the kernel takes every address to be on the link, and
// transparent it takes every source. Both are undone at once, which makes the
// socket look for its route when it next sends, as it always does.
func withoutRoute(fd int, f func() error, cause error) error {
	options := []struct{ level, option, value int }{
		{unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1},
		{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, loopback},
	}
	for i, o := range options {
		old, err := unix.GetsockoptInt(fd, o.level, o.option)
		if err != nil {
			return errors.Join(cause, err)
		}
		options[i].value = old
		if err := unix.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
			return errors.Join(cause, err)
		}
	}
	err := f()
	if err != nil {
		err = errors.Join(cause, err)
	}
	for _, o := range options {
		if back := unix.SetsockoptInt(fd, o.level, o.option, o.value); back != nil {
			err = errors.Join(err, fmt.Errorf("restore what was set to connect without a route: %w", back))
		}
	}
	return err
}

func (p *Plan) setOptions(fd int) error {
	const optMSS, optWindow, optSACK, optTimestamp = 2, 3, 4, 8
	opts := []repairOpt{{optMSS, p.Options.MSSClamp}}
	if p.Options.WindowScale {
		scales := uint32(p.Options.SndWscale) | uint32(p.Options.RcvWscale)<<16
		opts = append(opts, repairOpt{optWindow, scales})
	}
	if p.Options.SACK {
		opts = append(opts, repairOpt{optSACK, 0})
	}
	if p.Options.Timestamps {
		opts = append(opts, repairOpt{optTimestamp, 0})
	}
	if err := setRepairOptions(fd, opts); err != nil {
		return err
	}
	// The size of segments was computed by connect(), from the default MSS of
	// 536. Setting IP options, even to none, makes the kernel compute it anew.
	if err := unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, ""); err != nil {
		return fmt.Errorf("set IP_OPTIONS to none: %w", err)
	}
	if !p.Options.Timestamps {
		return nil
	}
	// Bit 0 would mean microseconds; two more keep the clock from going back.
	ts := (p.TSOffset + uptimeMs() + 2) &^ 1
	return setTCP(fd, unix.TCP_TIMESTAMP, int(int32(ts)))
}

func (p *Plan) fillReceiveQueue(fd int) error {
	err := withBuffer(fd, receiveBuffer, len(p.Unread), func() error {
		return write(fd, recvQueue, p.Unread)
	})
	if err != nil {
		return fmt.Errorf("restore %d unread octets: %w", len(p.Unread), err)
	}
	return setTCP(fd, unix.TCP_REPAIR_QUEUE, noQueue)
}

// fillSendQueue restores what is in flight. It must not be sent by plain send:
// the peer may have acknowledged more of it than a fresh congestion window lets
// the kernel send, and would then be ignored.
func (p *Plan) fillSendQueue(fd int) error {
	if len(p.sample())+len(p.InFlight) == 0 {
		return nil
	}
	err := withBuffer(fd, sendBuffer, len(p.sample())+len(p.InFlight), func() error {
		if err := write(fd, sendQueue, p.sample()); err != nil {
			return err
		}
		return write(fd, sendQueue, p.InFlight)
	})
	if err != nil {
		return fmt.Errorf("restore %d octets in flight: %w", len(p.InFlight), err)
	}
	return setTCP(fd, unix.TCP_REPAIR_QUEUE, noQueue)
}

// sample is an octet in front of those in flight. The peer has acknowledged it
// long ago, so what it is does not matter, but the kernel does not know: the
// answer to its probe acknowledges something, and so tells it the time.
func (p *Plan) sample() []byte {
	if p.Sample {
		return []byte{0}
	}
	return nil
}

// write puts octets into a queue, in parts that one socket buffer holds.
func write(fd, queue int, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if err := setTCP(fd, unix.TCP_REPAIR_QUEUE, queue); err != nil {
		return err
	}
	const part = 32 << 10
	for len(data) > 0 {
		n, err := unix.SendmsgN(fd, data[:min(part, len(data))], nil, nil,
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err != nil {
			return fmt.Errorf("send into queue %d: %w", queue, err)
		}
		data = data[n:]
	}
	return nil
}

func (p *Plan) setWindow(fd int) error {
	w := Window{
		// One before RCV.NXT: the peer's next segment updates the window.
		SndWl1:    uint32(p.RcvNxt.Add(-1)),
		SndWnd:    p.SndWnd,
		MaxWindow: max(p.MaxWnd, p.SndWnd),
		RcvWnd:    uint32(max(p.RightEdge.Minus(p.RcvNxt), 0)),
		RcvWup:    uint32(p.RcvNxt),
	}
	return setWindow(fd, &w)
}

// Send gives the kernel what the program gave and was never sent.
func (p *Plan) Send(fd int) error {
	return withBuffer(fd, sendBuffer, len(p.InFlight)+len(p.Unsent), func() error {
		for data := p.Unsent; len(data) > 0; {
			n, err := unix.SendmsgN(fd, data, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err != nil {
				return fmt.Errorf("send %d of %d octets: %w", len(data), len(p.Unsent), err)
			}
			data = data[n:]
		}
		return nil
	})
}

// Leave ends the repair mode. A probe makes the peer answer at once with what
// it has, and carries our acknowledgement. reuse is SO_REUSEADDR as it was
// before: the kernel clears it.
func Leave(fd int, probe bool, reuse int) error {
	off := unix.TCP_REPAIR_OFF_NO_WP
	if probe {
		off = unix.TCP_REPAIR_OFF
	}
	if err := setTCP(fd, unix.TCP_REPAIR, off); err != nil {
		return err
	}
	if reuse == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse); err != nil {
		return fmt.Errorf("restore SO_REUSEADDR: %w", err)
	}
	return nil
}

// Probe makes the peer of a connection out of repair mode answer at once.
func Probe(fd, reuse int) error {
	if err := enter(fd); err != nil {
		return err
	}
	return Leave(fd, true, reuse)
}

// Repairing says whether the socket is in repair mode.
func Repairing(fd int) (bool, error) {
	v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR)
	if err != nil {
		return false, fmt.Errorf("read TCP_REPAIR: %w", err)
	}
	return v != 0, nil
}

// Abandon closes the connection in a socket whose Rebuild failed: the repair
// mode is left, and the program's next call finds no connection.
func Abandon(fd int) {
	// Both fail only if there is nothing left to abandon.
	_ = disconnect(fd)
	_ = Leave(fd, false, 0)
}

func enter(fd int) error { return setTCP(fd, unix.TCP_REPAIR, unix.TCP_REPAIR_ON) }

func setTCP(fd, option, value int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value); err != nil {
		return fmt.Errorf("set %s to %d: %w", optionNames[option], value, err)
	}
	return nil
}

var optionNames = map[int]string{
	unix.TCP_REPAIR:       "TCP_REPAIR",
	unix.TCP_REPAIR_QUEUE: "TCP_REPAIR_QUEUE",
	unix.TCP_QUEUE_SEQ:    "TCP_QUEUE_SEQ",
	unix.TCP_TIMESTAMP:    "TCP_TIMESTAMP",
}

// uptimeMs is the clock that the kernel's and our timestamps count with.
func uptimeMs() uint32 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("repair: CLOCK_MONOTONIC: %v", err)) // cannot fail
	}
	return uint32(time.Duration(ts.Nano()) / time.Millisecond)
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// Addresses returns both ends of a TCP over IPv4 socket.
func Addresses(fd int) (local, remote netip.AddrPort, err error) {
	l, err := unix.Getsockname(fd)
	if err != nil {
		return local, remote, fmt.Errorf("read local address: %w", err)
	}
	r, err := unix.Getpeername(fd)
	if err != nil {
		return local, remote, fmt.Errorf("read remote address: %w", err)
	}
	l4, ok := l.(*unix.SockaddrInet4)
	if !ok {
		return local, remote, fmt.Errorf("local address is %T, not IPv4", l)
	}
	r4, ok := r.(*unix.SockaddrInet4)
	if !ok {
		return local, remote, fmt.Errorf("remote address is %T, not IPv4", r)
	}
	return addrPort(l4), addrPort(r4), nil
}

func addrPort(a *unix.SockaddrInet4) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
}
