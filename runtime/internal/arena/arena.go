// SPDX-License-Identifier: Apache-2.0

// Package arena is the daemon's view of the memory that it shares with one
// application (c-abi/include/etran/arena.h). The application can write all of
// it at any time: whatever is read here is copied first and checked then.
package arena

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// Stride of the connection array: two pages of connections share no line.
const connAlign = 256

// Layout says where things lie. The daemon keeps its own copy and never reads
// the one in the arena's header.
type Layout struct {
	Stash, Conns, Buffers, Size uint64
	ConnStride, BufferStride    uint64
}

// NewLayout computes the layout of every arena of this version.
func NewLayout() Layout {
	page := uint64(os.Getpagesize())
	l := Layout{
		Stash:        page,
		ConnStride:   roundUp(aconnSize, connAlign),
		BufferStride: abi.SndBuf + abi.RcvBuf,
	}
	l.Conns = roundUp(l.Stash+abi.StashSize*stashSize, page)
	l.Buffers = roundUp(l.Conns+abi.AppSlots*l.ConnStride, page)
	l.Size = l.Buffers + abi.AppSlots*l.BufferStride
	return l
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// Arena is one application's arena. Its addresses stay valid as long as somebody
// in the daemon can reach it: a tool may look at an application that ends.
type Arena struct {
	fd     int
	mem    []byte
	layout Layout
}

// New makes an empty, sealed arena. It is sparse: pages that no connection
// has used take no memory.
func New() (*Arena, error) {
	l := NewLayout()
	fd, err := SealedMemfd("etran-arena", int64(l.Size))
	if err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, int(l.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map arena of %d octets: %w", l.Size, err)
	}
	a := wrap(fd, mem, l)
	*a.header() = abi.Arena{
		Magic: abi.Magic, Version: abi.Version, Size: l.Size,
		StashOffset: l.Stash, ConnsOffset: l.Conns, ConnStride: l.ConnStride,
		BuffersOffset: l.Buffers, BufferStride: l.BufferStride,
		SndSize: abi.SndBuf, RcvSize: abi.RcvBuf, Slots: abi.AppSlots, StashSize: abi.StashSize,
	}
	return a, nil
}

// Adopt maps an arena that an earlier daemon made. The descriptor becomes its.
func Adopt(fd int) (*Arena, error) {
	l := NewLayout()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at the arena: %w", err)
	}
	if st.Size != int64(l.Size) {
		return nil, fmt.Errorf("arena of %d octets instead of %d: %w", st.Size, l.Size, unix.EINVAL)
	}
	mem, err := unix.Mmap(fd, 0, int(l.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map arena of %d octets: %w", l.Size, err)
	}
	return wrap(fd, mem, l), nil
}

func wrap(fd int, mem []byte, l Layout) *Arena {
	a := &Arena{fd: fd, mem: mem, layout: l}
	runtime.AddCleanup(a, func(mem []byte) { _ = unix.Munmap(mem) }, mem)
	return a
}

// SealedMemfd makes shared memory that its other holders can neither shrink
// nor grow: the daemon would die of SIGBUS reading what was cut off.
func SealedMemfd(name string, size int64) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("create memfd %s: %w", name, err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("size memfd %s to %d: %w", name, size, err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("seal memfd %s: %w", name, err)
	}
	return fd, nil
}

// Close gives the memory back. It can be half a gigabyte, so it does not wait
// until nobody can reach it any more; whoever looks later finds zeros.
func (a *Arena) Close() {
	_ = a.replaceByZeros() // after an error the memory goes with the last look
	_ = unix.Close(a.fd)
}

// Fd is the memfd, for the application.
func (a *Arena) Fd() int { return a.fd }

// Size is the arena's length in octets.
func (a *Arena) Size() uint64 { return a.layout.Size }

// Totals are the application's own counters, for tools only.
type Totals struct {
	KernelBytesIn, KernelBytesOut, KernelCalls, Sockets uint64
}

// Slot is one connection's part of the arena.
type Slot struct {
	a     *Arena
	index uint32
}

// Slot returns the part of a slot that the caller has checked to exist.
func (a *Arena) Slot(index uint32) Slot { return Slot{a, index} }

// SetPhase stores the phase and wakes whoever waits for it.
func (s Slot) SetPhase(p abi.Phase) {
	word := s.phaseWord()
	storeRelease(word, uint32(p))
	futexWake(word)
}

// Phase reads the phase word as it stands.
func (s Slot) Phase() abi.Phase { return abi.Phase(loadAcquire(s.phaseWord())) }

// AwaitPhase waits until the phase word differs from `from`: a short spin,
// because an application that runs answers in a microsecond, then asleep. It
// returns what the word is then, or at the deadline.
func (s Slot) AwaitPhase(from abi.Phase, timeout time.Duration) abi.Phase {
	const spin = 10 * time.Microsecond
	word, start := s.phaseWord(), time.Now()
	for {
		if p := abi.Phase(loadAcquire(word)); p != from {
			return p
		}
		switch passed := time.Since(start); {
		case passed >= timeout:
			return from
		case passed >= spin:
			futexWait(word, uint32(from), timeout-passed)
		}
	}
}

// Constants are what the daemon tells about a connection.
type Constants struct {
	Mss, RcvWindow, Keepalive, UserTimeout uint32
}

// Data is where the two streams of a connection begin, and the octets that
// the buffers have at first.
type Data struct {
	SndUna, SndNxt uint32
	RcvNxt         uint32
	// Unacked are the octets from SndUna on, in flight or not sent yet.
	Unacked []byte
	// Unread are the octets in front of RcvNxt.
	Unread []byte
}

// Start tells the constants of a connection about to become fast.
func (s Slot) Start(c Constants) {
	w := s.aconn()
	w.Mss, w.RcvWindow = c.Mss, c.RcvWindow
	w.Keepalive, w.UserTimeout = c.Keepalive, c.UserTimeout
}

// Fill fills the words and buffers of a connection about to become fast. The
// buffers must have room for the data.
func (s Slot) Fill(d Data) {
	w := s.aconn()
	w.Snd.Base, w.Snd.Una, w.Snd.Nxt = d.SndUna, d.SndUna, d.SndNxt
	w.Snd.End = d.SndUna + uint32(copy(s.sndRing(), d.Unacked))
	w.Rcv.Base = d.RcvNxt - uint32(copy(s.rcvRing(), d.Unread))
	w.Rcv.Read, w.Rcv.Nxt, w.Rcv.Ranges = w.Rcv.Base, d.RcvNxt, 0
}

// Claim names the slot's generation and ring, before OBSERVING.
func (s Slot) Claim(generation, ring uint32) {
	w := s.aconn()
	w.Generation, w.Ring, w.Displaced = generation, ring, 0
}

// seizeTries bounds the attempts to take a lock in an orderly way: only a
// program that changes the word all the time uses them up.
const seizeTries = 1000

// Seize takes the connection's lock from whoever has it (ETRAN_LOCK_SEIZED in
// c-abi/include/etran/arena.h). The phase is FROZEN already.
func (s Slot) Seize() {
	w := s.aconn()
	for range seizeTries {
		owner := loadAcquire(&w.Owner)
		if owner == uint32(abi.LockSeized) {
			return // by a daemon that died meanwhile
		}
		storeRelease(&w.Displaced, owner)
		if compareAndSwap(&w.Owner, owner, uint32(abi.LockSeized)) {
			return
		}
	}
	storeRelease(&w.Owner, uint32(abi.LockSeized))
}

// SetTaken says what a seizure found: how far the program has read, and the
// end of what it has given.
func (s Slot) SetTaken(read, end uint32) {
	w := s.aconn()
	w.TakenRead, w.TakenEnd = read, end
}

// Yield gives the lock of Seize back, after the last change of the phase.
func (s Slot) Yield() {
	w := s.aconn()
	storeRelease(&w.Owner, 0)
	futexWake(&w.Owner)
}

// YieldSeized is Yield if a daemon has seized the lock, and perhaps died since.
func (s Slot) YieldSeized() {
	w := s.aconn()
	if swap(&w.Owner, abi.LockSeized, 0) {
		futexWake(&w.Owner)
	}
}

// SetReason says why the slot is refused, aborted or demoted.
func (s Slot) SetReason(r abi.PathReason) { s.aconn().Reason = uint32(r) }

// Reason is what the library or SetReason wrote last.
func (s Slot) Reason() abi.PathReason {
	if r := abi.PathReason(s.aconn().Reason); r < abi.PathReasonMax {
		return r
	}
	return abi.PathReasonProtocol
}

// Words are the untrusted words of a connection, copied.
type Words struct {
	Snd                    SndWords
	Rcv                    RcvWords
	Keepalive, UserTimeout uint32
	KernelBytesIn          uint64
	KernelBytesOut         uint64
}

// SndWords is struct etran_sndbuf.
type SndWords struct{ Base, Una, Nxt, End uint32 }

// RcvWords is struct etran_rcvbuf.
type RcvWords struct {
	Base, Read, Nxt, Ranges uint32
	Range                   [abi.OooRanges]abi.Range
}

// Beyond lists the ranges that lie beyond a hole.
func (w *RcvWords) Beyond() []abi.Range { return w.Range[:min(w.Ranges, abi.OooRanges)] }

// Words copies the slot's words once.
func (s Slot) Words() Words {
	w := *s.aconn()
	return Words{
		Snd:            SndWords{w.Snd.Base, w.Snd.Una, w.Snd.Nxt, w.Snd.End},
		Rcv:            rcvWords(&w),
		Keepalive:      w.Keepalive,
		UserTimeout:    w.UserTimeout,
		KernelBytesIn:  w.KernelBytesIn,
		KernelBytesOut: w.KernelBytesOut,
	}
}

func rcvWords(w *abi.Aconn) RcvWords {
	out := RcvWords{Base: w.Rcv.Base, Read: w.Rcv.Read, Nxt: w.Rcv.Nxt, Ranges: w.Rcv.Ranges}
	for i, r := range w.Rcv.Range {
		out.Range[i] = abi.Range(r)
	}
	return out
}

// CopySnd copies n octets from sequence `from` out of the send ring.
func (s Slot) CopySnd(base, from uint32, n int) []byte {
	return copyRing(s.sndRing(), from-base, n)
}

// CopyRcv copies n octets from sequence `from` out of the receive ring.
func (s Slot) CopyRcv(base, from uint32, n int) []byte {
	return copyRing(s.rcvRing(), from-base, n)
}

func (s Slot) sndRing() []byte { return s.a.mem[s.buffers():][:abi.SndBuf] }
func (s Slot) rcvRing() []byte { return s.a.mem[s.buffers()+abi.SndBuf:][:abi.RcvBuf] }

func (s Slot) buffers() uint64 {
	return s.a.layout.Buffers + uint64(s.index)*s.a.layout.BufferStride
}

// copyRing copies n <= len(ring) octets; len(ring) is a power of two.
func copyRing(ring []byte, offset uint32, n int) []byte {
	if n == 0 {
		return nil
	}
	out := make([]byte, n)
	start := int(offset & uint32(len(ring)-1))
	first := copy(out, ring[start:])
	copy(out[first:], ring)
	return out
}

// Held is a stashed frame, copied and with its place in the UMEM unchecked.
type Held struct {
	Index  int
	Addr   uint64
	Length uint32
	Order  uint32
}

// Stash states (struct etran_stash).
const (
	stashUnused = 0
	stashHeld   = 1
)

// Held lists the stash entries of a slot's generation.
func (a *Arena) Held(slot uint16, generation uint32) []Held {
	var list []Held
	for i := range int(abi.StashSize) {
		e := *a.stash(i)
		if e.State == stashHeld && e.Slot == slot && e.Generation == generation {
			list = append(list, Held{i, e.Addr, e.Length, e.Order})
		}
	}
	runtime.KeepAlive(a)
	return list
}
