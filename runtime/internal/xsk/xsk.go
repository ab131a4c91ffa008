// SPDX-License-Identifier: Apache-2.0

// Package xsk makes the AF_XDP sockets that an application receives by. The
// application maps their rings; the daemon only creates them. They have no
// transmit ring, and are always in copy mode: with zero copy the device would
// write every packet of the queue, anybody's, into the application's memory.
package xsk

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
)

const (
	// The kernel wants a completion ring although nothing is ever sent.
	completionSize = 64

	bindPatience = time.Second
	bindRetry    = 10 * time.Millisecond
)

// ErrQueueBusy means that another program's socket is bound to a queue.
var ErrQueueBusy = errors.New("another AF_XDP socket has the queue")

// Fill is the number of entries of each fill ring: as many as there are
// descriptors for.
const Fill = abi.RingSize

// Set is one application's frame memory and its sockets over it.
type Set struct {
	Umem    int // memfd
	Frames  uint32
	Sockets []Socket
	mem     []byte
}

// Socket is bound to one queue of one device.
type Socket struct {
	Fd   int
	Ring uint32 // of the application, see ETRAN_MAX_RINGS
	rx   ring   // only to be looked at
}

// Open makes the memory for a device's queues and a shared ring.
func Open(queues int) (*Set, error) {
	s := &Set{Umem: -1, Frames: frames(queues)}
	if err := s.open(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func frames(queues int) uint32 { return abi.RingSize*uint32(queues+1) + abi.StashSize }

// Adopt takes over a set of an earlier daemon's, made for so many queues. The
// descriptors become the set's, also after an error.
func Adopt(umem, queues int, sockets []Socket) (*Set, error) {
	s := &Set{Umem: umem, Frames: frames(queues), Sockets: sockets}
	if err := s.adopt(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Set) adopt() error {
	var st unix.Stat_t
	if err := unix.Fstat(s.Umem, &st); err != nil {
		return fmt.Errorf("look at the frame memory: %w", err)
	}
	size := int(s.Frames) * abi.FrameSize
	if st.Size != int64(size) {
		return fmt.Errorf("frame memory of %d octets instead of %d: %w", st.Size, size, unix.EINVAL)
	}
	var err error
	s.mem, err = unix.Mmap(s.Umem, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %d octets of frame memory: %w", size, err)
	}
	for i := range s.Sockets {
		if s.Sockets[i].rx, err = mapRing(s.Sockets[i].Fd, abi.RingSize); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) open() error {
	size := int(s.Frames) * abi.FrameSize
	var err error
	if s.Umem, err = arena.SealedMemfd("etran-umem", int64(size)); err != nil {
		return err
	}
	s.mem, err = unix.Mmap(s.Umem, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map %d octets of frame memory: %w", size, err)
	}
	return nil
}

// Bind makes a socket for one of the application's rings and binds it to a
// receive queue of a device, which is in the calling thread's network namespace.
// The sockets may be in different ones.
func (s *Set) Bind(ifindex, queue int, number uint32) (Socket, error) {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Socket{}, fmt.Errorf("create AF_XDP socket: %w", err)
	}
	socket := Socket{Fd: fd, Ring: number}
	if err = s.configure(fd); err == nil {
		err = s.bind(fd, ifindex, queue)
	}
	if err == nil {
		socket.rx, err = mapRing(fd, abi.RingSize)
	}
	if err != nil {
		unix.Close(fd)
		return Socket{}, fmt.Errorf("AF_XDP socket for queue %d of interface %d: %w", queue, ifindex, err)
	}
	s.Sockets = append(s.Sockets, socket)
	return socket, nil
}

// Trim closes the sockets beyond the first n, which must be unused. The first
// socket of all holds the memory.
func (s *Set) Trim(n int) {
	for _, socket := range s.Sockets[n:] {
		_ = unix.Munmap(socket.rx.mem) // mapped by Bind, cannot fail
		unix.Close(socket.Fd)
	}
	s.Sockets = s.Sockets[:n]
}

func (s *Set) configure(fd int) error {
	if len(s.Sockets) == 0 {
		if err := registerUmem(fd, s.mem, abi.FrameSize); err != nil {
			return fmt.Errorf("register frame memory: %w", err)
		}
	}
	for _, ring := range []struct {
		name    string
		option  int
		entries uint32
	}{
		{"fill", unix.XDP_UMEM_FILL_RING, Fill},
		{"completion", unix.XDP_UMEM_COMPLETION_RING, completionSize},
		{"receive", unix.XDP_RX_RING, abi.RingSize},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, ring.option, int(ring.entries)); err != nil {
			return fmt.Errorf("create %s ring of %d: %w", ring.name, ring.entries, err)
		}
	}
	return nil
}

func (s *Set) bind(fd, ifindex, queue int) error {
	addr := &unix.SockaddrXDP{Ifindex: uint32(ifindex), QueueID: uint32(queue)}
	if len(s.Sockets) == 0 {
		addr.Flags = unix.XDP_COPY | unix.XDP_USE_NEED_WAKEUP
	} else {
		// The flags of the first socket hold for all that share its memory.
		addr.Flags = unix.XDP_SHARED_UMEM
		addr.SharedUmemFD = uint32(s.Sockets[0].Fd)
	}
	err := unix.Bind(fd, addr)
	if err == unix.EBUSY {
		return ErrQueueBusy
	}
	return err
}

// Patiently calls bind, which calls Bind, again while a queue is busy: after a
// process that had it was killed, the kernel unbinds its sockets from a work
// queue only.
func Patiently(bind func() error) error {
	for deadline := time.Now().Add(bindPatience); ; time.Sleep(bindRetry) {
		err := bind()
		if !errors.Is(err, ErrQueueBusy) || time.Now().After(deadline) {
			return err
		}
	}
}

// Frame copies a frame that an application says is at addr. ok is false if
// it would not lie wholly inside one frame of the memory.
func (s *Set) Frame(addr uint64, length uint32) (frame []byte, ok bool) {
	if addr >= uint64(len(s.mem)) || length > abi.FrameSize || addr%abi.FrameSize+uint64(length) > abi.FrameSize {
		return nil, false
	}
	return append([]byte(nil), s.mem[addr:addr+uint64(length)]...), true
}

// Close closes the daemon's descriptors and mapping.
func (s *Set) Close() {
	s.Trim(0)
	if s.mem != nil {
		_ = unix.Munmap(s.mem) // mapped by open, cannot fail
	}
	if s.Umem >= 0 {
		unix.Close(s.Umem)
	}
	s.mem, s.Umem = nil, -1
}
