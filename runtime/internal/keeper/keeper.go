// SPDX-License-Identifier: Apache-2.0

// Package keeper keeps what must outlive the daemon: named items, each some
// octets and some descriptors. They lie in a tiny process of their own, which
// does nothing else.
//
// The daemon sends each change over a unix socket and waits for no answer:
// once its sendmsg has returned, the packet is in the keeper's queue and
// survives whatever happens to the daemon. So the packets are a journal. The
// next daemon lists the items and adopts what they describe.
//
// One packet is a header (magic, version, operation, flags, length of the
// name), the name and the octets; descriptors travel beside it.
package keeper

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/scm"
)

// Name is the keeper's argv[0]: the same program as the daemon, with another
// name.
const Name = "etrand-keeper"

// SocketName is the keeper's socket in the run directory.
const SocketName = "keeper.sock"

// Bounds of one item, and of all.
const (
	MaxName  = 64
	MaxBlob  = 8 << 10
	MaxFds   = 32
	maxItems = 1 << 17
)

// Item is one thing that is kept.
type Item struct {
	Name string
	// Alive: the first descriptor is a pidfd. The keeper stays, even without
	// a daemon, as long as the process of such an item lives.
	Alive bool
	Blob  []byte
	Fds   []int
}

// Close closes the item's descriptors.
func (i *Item) Close() {
	scm.Close(i.Fds)
	i.Fds = nil
}

const (
	magic      = 0x704b7445 // "EtKp"
	version    = 1
	headerSize = 8
	maxPacket  = headerSize + MaxName + MaxBlob
)

// Operations. The keeper answers LIST with a PUT for each item and END.
const (
	opPut byte = iota + 1
	opDelete
	opList
	opEnd
	opQuit
)

const flagAlive = 1

// errPacket means that something else than a keeper's client or a keeper is at
// the other end, or one of another version.
var errPacket = errors.New("not a packet of this keeper version")

func encode(op byte, item *Item) []byte {
	p := make([]byte, headerSize, headerSize+len(item.Name)+len(item.Blob))
	binary.NativeEndian.PutUint32(p, magic)
	p[4], p[5], p[7] = version, op, byte(len(item.Name))
	if item.Alive {
		p[6] = flagAlive
	}
	return append(append(p, item.Name...), item.Blob...)
}

func decode(p []byte) (op byte, item Item, err error) {
	if len(p) < headerSize || binary.NativeEndian.Uint32(p) != magic || p[4] != version {
		return 0, item, errPacket
	}
	n := headerSize + int(p[7])
	if n > len(p) || p[7] > MaxName || len(p)-n > MaxBlob {
		return 0, item, errPacket
	}
	item.Name, item.Alive = string(p[headerSize:n]), p[6]&flagAlive != 0
	item.Blob = append([]byte(nil), p[n:]...)
	return p[5], item, nil
}

// send waits while the other end's queue is full, as long as the socket's
// time-out says.
func send(fd int, op byte, item *Item) error {
	var oob []byte
	if len(item.Fds) > 0 {
		oob = unix.UnixRights(item.Fds...)
	}
	for {
		err := unix.Sendmsg(fd, encode(op, item), oob, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// errEnd is the end of the connection.
var errEnd = errors.New("connection ended")

func receive(fd, flags int) (op byte, item Item, err error) {
	p, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(MaxFds*4))
	n, oobn, got, _, err := unix.Recvmsg(fd, p, oob, flags|unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, oobn, got, _, err = unix.Recvmsg(fd, p, oob, flags|unix.MSG_CMSG_CLOEXEC)
	}
	if err == unix.ECONNRESET || err == nil && n == 0 {
		return 0, item, errEnd
	}
	if err != nil {
		return 0, item, err
	}
	fds, err := scm.Descriptors(oob[:oobn])
	if err == nil && got&unix.MSG_TRUNC != 0 {
		err = errPacket
	}
	if err == nil {
		op, item, err = decode(p[:n])
	}
	if err != nil {
		scm.Close(fds)
		return 0, item, err
	}
	// Fewer than were sent if the process has no room for more: whoever
	// adopts the item sees that they are missing.
	item.Fds = fds
	return op, item, nil
}
