// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/die"
	"github.com/etran-go/etran/runtime/internal/nexthop"
	"github.com/etran-go/etran/runtime/internal/repair"
)

// Journal keeps what outlives the daemon (see package keeper). What Put was
// given is safe when it returns.
type Journal interface {
	Put(name string, alive bool, blob any, fds ...int)
	Delete(name string)
}

// ItemPrefix begins the names of slots in the journal.
const ItemPrefix = "slot-"

// entry is what another daemon needs of a slot, beside the connection record
// and the arena: its item in the journal, with the socket's descriptor. It is
// written before anything that it is needed to undo.
type entry struct {
	App, Slot     uint16
	Generation    uint32
	Local, Remote netip.AddrPort
	Cookie        uint64
	Options       repair.Options
	Device        int // ifindex
	Hop           nexthop.Hop
	// The program's own, as they were before a switch.
	Reuse, Keepalive, UserTimeout int
	// Dump is the socket's state before it was put to sleep.
	Dump *repair.State `json:",omitempty"`
	// Queues: the arena has the octets of the socket's queues, which may
	// have been emptied.
	Queues *lengths `json:",omitempty"`
}

// lengths are those of repair.Queues.
type lengths struct{ Unread, InFlight, Unsent int }

func (s *Slot) item() string { return fmt.Sprintf("%s%d-%d", ItemPrefix, s.app, s.slot) }

func (s *Slot) save() { s.env.Journal.Put(s.item(), false, &s.entry, s.fd) }

// forget takes the slot out of the journal, before the socket is closed.
func (s *Slot) forget() {
	if s.entry.Generation != 0 {
		s.env.Journal.Delete(s.item())
	}
	s.entry = entry{}
}

// begin journals a slot whose record is about to be installed.
func (s *Slot) begin() {
	s.entry = entry{
		App: s.app, Slot: s.slot, Generation: s.generation,
		Local: s.sock.local, Remote: s.sock.remote, Cookie: s.sock.cookie, Options: s.sock.options,
		Device: s.device.Ifindex, Hop: s.hop,
	}
	// The options matter from the first repair mode on; they are read again
	// then, and seldom differ.
	if o, err := readOptions(s.fd); err == nil {
		s.entry.Reuse, s.entry.Keepalive, s.entry.UserTimeout = o[0], o[1], o[2]
	}
	s.save()
}

func readOptions(fd int) (o [3]int, err error) {
	for i, option := range [3][2]int{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
	} {
		if o[i], err = unix.GetsockoptInt(fd, option[0], option[1]); err != nil {
			return o, fmt.Errorf("read option %d of level %d: %w", option[1], option[0], err)
		}
	}
	return o, nil
}

// saveOptions journals what a switch changes in the socket.
func (s *Slot) saveOptions() error {
	o, err := readOptions(s.fd)
	if err != nil {
		return err
	}
	e := &s.entry
	if o != [3]int{e.Reuse, e.Keepalive, e.UserTimeout} {
		e.Reuse, e.Keepalive, e.UserTimeout = o[0], o[1], o[2]
		s.save()
	}
	return nil
}

// saveDump journals the socket's numbers, before it is put to sleep.
func (s *Slot) saveDump(dump *repair.State) {
	s.entry.Dump, s.entry.Options = dump, dump.Options
	s.save()
}

// saveQueues puts the octets of the socket's queues into the library's buffers,
// where they survive the daemon, before they are taken out of the socket.
func (s *Slot) saveQueues(dump *repair.State, q *repair.Queues) {
	s.mem.Fill(data(dump, q))
	if q.Empty() {
		return
	}
	s.entry.Queues = &lengths{len(q.Unread), len(q.InFlight), len(q.Unsent)}
	s.save()
	die.At("switch-queues")
}

// savedQueues are the octets that saveQueues stored. The lengths are ours; the
// octets may be anything by now, as they are the program's.
func (s *Slot) savedQueues() (q repair.Queues) {
	n, d := s.entry.Queues, s.entry.Dump
	if n == nil || d == nil {
		return q
	}
	una := uint32(d.WriteSeq) - uint32(n.InFlight+n.Unsent)
	read := uint32(d.RcvNxt) - uint32(n.Unread)
	q.Unread = s.mem.CopyRcv(read, read, n.Unread)
	q.InFlight = s.mem.CopySnd(una, una, n.InFlight)
	q.Unsent = s.mem.CopySnd(una, una+uint32(n.InFlight), n.Unsent)
	return q
}
