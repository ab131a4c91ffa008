// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"errors"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// The daemon takes nothing out of a receive ring: that is the library's. It
// only looks at what the library has not taken. Both indices lie in memory that
// the program can write, and so do the frames.

const descSize = 16 // struct xdp_desc

// ErrRing means that a ring's indices make no sense.
var ErrRing = errors.New("receive ring makes no sense")

// ring is one receive ring, mapped for reading.
type ring struct {
	mem  []byte
	offs unix.XDPRingOffset
	size uint32
}

// Frame is a frame in a receive ring, copied.
type Frame struct {
	Meta abi.RxMeta
	// Data begins with the Ethernet header.
	Data []byte
}

// Payload is the part that the metadata names; nil if it lies outside.
func (f *Frame) Payload() []byte {
	from, to := int(f.Meta.Offset), int(f.Meta.Offset)+int(f.Meta.Length)
	if to > len(f.Data) {
		return nil
	}
	return f.Data[from:to]
}

// Produced is how many frames a socket's ring has shown since it began, modulo
// 2^32.
func (s *Set) Produced(socket int) uint32 { return s.Sockets[socket].rx.producer() }

// Peek copies the frames of a slot's generation that a socket's ring holds and
// the library has not taken.
//
// The library publishes its consumer index after it has stored what it took,
// and gives frames back to the kernel only after that. So a frame that is not
// behind the index after it was copied was whole; one that is behind it, then
// or at the beginning, is in the library's buffers for whoever looks there
// next.
func (s *Set) Peek(socket int, slot uint16, generation uint32) ([]Frame, error) {
	r := &s.Sockets[socket].rx
	at, end := r.consumer(), r.producer()
	if end-at > r.size {
		return nil, ErrRing
	}
	var frames []Frame
	for ; at != end; at++ {
		addr, length := r.desc(at)
		f, ok := s.frameAt(addr, length, slot, generation)
		if ok && int32(r.consumer()-at) <= 0 {
			frames = append(frames, f)
		}
	}
	return frames, nil
}

// frameAt copies a frame if it is the slot's.
func (s *Set) frameAt(addr uint64, length uint32, slot uint16, generation uint32) (f Frame, ok bool) {
	if addr >= uint64(len(s.mem)) || addr%abi.FrameSize < metaSize {
		return f, false
	}
	if f.Meta = s.metaAt(addr); f.Meta.Slot != slot || f.Meta.Generation != generation {
		return f, false
	}
	f.Data, ok = s.Frame(addr, length)
	return f, ok
}
