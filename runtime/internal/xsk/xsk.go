// SPDX-License-Identifier: Apache-2.0

// Package xsk makes the AF_XDP sockets that an application receives by. The
// application maps their rings; the daemon only creates them. They have no
// transmit ring, and are always in copy mode: with zero copy the device would
// write every packet of the queue, anybody's, into the application's memory.
package xsk

import (
	"errors"
	"fmt"
	"math/bits"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
)

const (
	// The kernel wants a completion ring although nothing is ever sent.
	completionSize = 64

	// After a process that had the queue was killed, the kernel unbinds its
	// sockets from a work queue only.
	bindPatience = time.Second
	bindRetry    = 10 * time.Millisecond
)

// ErrQueueBusy means that another program's socket is bound to a queue.
var ErrQueueBusy = errors.New("another AF_XDP socket has the queue")

// Set is one application's frame memory and its socket on each queue of a
// device, in the order of the queues.
type Set struct {
	Umem    int // memfd
	Frames  uint32
	Fill    uint32 // entries of each fill ring
	Sockets []int
	mem     []byte
	rings   []ring // of Sockets, only to be looked at
}

// Open makes the memory and binds a socket to every receive queue.
func Open(ifindex, queues int) (*Set, error) {
	s := &Set{Umem: -1}
	s.size(queues)
	if err := s.open(ifindex, queues); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Adopt takes over a set of an earlier daemon's. The descriptors become the
// set's: its memory and a socket for each queue.
func Adopt(umem int, sockets []int) (*Set, error) {
	var st unix.Stat_t
	if err := unix.Fstat(umem, &st); err != nil {
		return nil, fmt.Errorf("look at the frame memory: %w", err)
	}
	s := &Set{Umem: umem, Sockets: sockets}
	s.size(len(sockets))
	size := int(s.Frames) * abi.FrameSize
	if st.Size != int64(size) {
		return nil, fmt.Errorf("frame memory of %d octets instead of %d: %w", st.Size, size, unix.EINVAL)
	}
	var err error
	s.mem, err = unix.Mmap(umem, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d octets of frame memory: %w", size, err)
	}
	return s, nil
}

func (s *Set) size(queues int) {
	s.Frames = pow2(abi.RingSize*uint32(queues) + abi.StashSize)
	s.Fill = pow2((s.Frames + uint32(queues) - 1) / uint32(queues))
}

func pow2(n uint32) uint32 { return 1 << bits.Len32(n-1) }

func (s *Set) open(ifindex, queues int) error {
	size := int(s.Frames) * abi.FrameSize
	var err error
	if s.Umem, err = arena.SealedMemfd("etran-umem", int64(size)); err != nil {
		return err
	}
	s.mem, err = unix.Mmap(s.Umem, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map %d octets of frame memory: %w", size, err)
	}
	for queue := range queues {
		fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("create AF_XDP socket: %w", err)
		}
		s.Sockets = append(s.Sockets, fd)
		if err := s.configure(fd, queue == 0); err != nil {
			return err
		}
		if err := s.bind(fd, ifindex, queue); err != nil {
			return fmt.Errorf("bind AF_XDP socket to queue %d of interface %d: %w", queue, ifindex, err)
		}
		r, err := mapRing(fd, abi.RingSize)
		if err != nil {
			return fmt.Errorf("map the receive ring of queue %d: %w", queue, err)
		}
		s.rings = append(s.rings, r)
	}
	return nil
}

func (s *Set) configure(fd int, first bool) error {
	if first {
		if err := registerUmem(fd, s.mem, abi.FrameSize); err != nil {
			return fmt.Errorf("register frame memory: %w", err)
		}
	}
	for _, ring := range []struct {
		name    string
		option  int
		entries uint32
	}{
		{"fill", unix.XDP_UMEM_FILL_RING, s.Fill},
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
	if queue == 0 {
		addr.Flags = unix.XDP_COPY | unix.XDP_USE_NEED_WAKEUP
	} else {
		// The flags of the first socket hold for all that share its memory.
		addr.Flags = unix.XDP_SHARED_UMEM
		addr.SharedUmemFD = uint32(s.Sockets[0])
	}
	for deadline := time.Now().Add(bindPatience); ; {
		err := unix.Bind(fd, addr)
		if err != unix.EBUSY {
			return err
		}
		if time.Now().After(deadline) {
			return ErrQueueBusy
		}
		time.Sleep(bindRetry)
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
	for _, r := range s.rings {
		_ = unix.Munmap(r.mem) // mapped by open, cannot fail
	}
	for _, fd := range s.Sockets {
		unix.Close(fd)
	}
	if s.mem != nil {
		_ = unix.Munmap(s.mem) // mapped by open, cannot fail
	}
	if s.Umem >= 0 {
		unix.Close(s.Umem)
	}
	s.Sockets, s.rings, s.mem, s.Umem = nil, nil, nil, -1
}
