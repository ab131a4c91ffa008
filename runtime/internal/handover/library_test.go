// SPDX-License-Identifier: Apache-2.0

package handover_test

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/control"
)

// library is the least library that can speak with the daemon: one thread,
// in-order data only. It plays the L side of the phase machine.
type library struct {
	t        *testing.T // that runs now
	whole    *testing.T // that the library lives for
	control  int
	app      abi.MsgRegistered
	rings    abi.MsgRings
	arena    []byte
	pub      []byte
	umem     []byte
	tap      int
	rx       ring
	fill     ring
	taken    uint32
	reported uint32
	order    uint32
	stashed  int
}

// ring is one mapped AF_XDP ring.
type ring struct {
	mem  []byte
	offs unix.XDPRingOffset
	size uint32
}

func (r *ring) producer() *uint32 { return word(r.mem, r.offs.Producer) }
func (r *ring) consumer() *uint32 { return word(r.mem, r.offs.Consumer) }

func word(mem []byte, at uint64) *uint32 { return (*uint32)(unsafe.Pointer(&mem[at])) }

// newLibrary registers.
func newLibrary(t *testing.T, runDir string) *library {
	t.Helper()
	l := &library{t: t, whole: t, tap: -1}
	l.control = must1(t)(unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0))
	t.Cleanup(func() { unix.Close(l.control) })
	must(t, unix.Connect(l.control, &unix.SockaddrUnix{Name: filepath.Join(runDir, control.SocketName)}))
	register := abi.MsgRegister{}
	register.H.Magic, register.H.Version, register.H.Type = abi.Magic, abi.Version, uint16(abi.MsgTypeRegister)
	l.send(&register, -1)
	fds := l.receive(&l.app, abi.MsgTypeRegistered)
	if len(fds) != 3 {
		t.Fatalf("REGISTERED with %d descriptors", len(fds))
	}
	l.arena = l.mmap(fds[0], 0, int(l.app.ArenaSize), unix.PROT_READ|unix.PROT_WRITE)
	l.pub = l.mmap(fds[1], 0, int(l.app.PubSize), unix.PROT_READ)
	for _, fd := range fds {
		unix.Close(fd)
	}
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must1(t *testing.T) func(int, error) int {
	return func(v int, err error) int { t.Helper(); must(t, err); return v }
}

func (l *library) mmap(fd int, offset int64, size, prot int) []byte {
	l.t.Helper()
	mem, err := unix.Mmap(fd, offset, size, prot, unix.MAP_SHARED)
	must(l.t, err)
	l.whole.Cleanup(func() { unix.Munmap(mem) })
	return mem
}

func (l *library) send(message any, fd int) {
	l.t.Helper()
	packet, err := binary.Append(nil, binary.NativeEndian, message)
	must(l.t, err)
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	must(l.t, unix.Sendmsg(l.control, packet, oob, nil, 0))
}

func (l *library) receive(message any, want abi.MsgType) []int {
	l.t.Helper()
	tv := unix.Timeval{Sec: 3}
	must(l.t, unix.SetsockoptTimeval(l.control, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	packet, oob := make([]byte, 256), make([]byte, 256)
	n, oobn, _, _, err := unix.Recvmsg(l.control, packet, oob, 0)
	must(l.t, err)
	if got := binary.NativeEndian.Uint16(packet[6:]); abi.MsgType(got) != want {
		l.t.Fatalf("message %d, want %d", got, want)
	}
	if _, err := binary.Decode(packet[:n], binary.NativeEndian, message); err != nil {
		l.t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	must(l.t, err)
	if len(messages) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	must(l.t, err)
	return fds
}

// openRings takes over what the first OBSERVE brings.
func (l *library) openRings() {
	l.t.Helper()
	fds := l.receive(&l.rings, abi.MsgTypeRings)
	if len(fds) != 3 {
		l.t.Fatalf("RINGS with %d descriptors", len(fds))
	}
	l.umem = l.mmap(fds[0], 0, int(l.rings.Frames*l.rings.FrameSize), unix.PROT_READ|unix.PROT_WRITE)
	l.tap = fds[1]
	xsk := fds[2]
	var offs unix.XDPMmapOffsets
	size := uint32(unsafe.Sizeof(offs))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(xsk), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&offs)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		l.t.Fatal(errno)
	}
	l.rx = ring{offs: offs.Rx, size: l.rings.RingSize}
	l.rx.mem = l.mmap(xsk, unix.XDP_PGOFF_RX_RING, int(offs.Rx.Desc)+int(l.rx.size)*16, unix.PROT_READ|unix.PROT_WRITE)
	l.fill = ring{offs: offs.Fr, size: l.rings.FillSize}
	l.fill.mem = l.mmap(xsk, unix.XDP_UMEM_PGOFF_FILL_RING, int(offs.Fr.Desc)+int(l.fill.size)*8, unix.PROT_READ|unix.PROT_WRITE)
	for i := range l.rings.RingSize {
		l.giveFrame(uint64(i) * uint64(l.rings.FrameSize))
	}
	l.whole.Cleanup(func() { unix.Close(fds[0]); unix.Close(l.tap); unix.Close(xsk) })
}

func (l *library) giveFrame(addr uint64) {
	at := *l.fill.producer()
	slot := l.fill.offs.Desc + uint64(at&(l.fill.size-1))*8
	binary.NativeEndian.PutUint64(l.fill.mem[slot:], addr&^uint64(l.rings.FrameSize-1))
	atomic.StoreUint32(l.fill.producer(), at+1)
}

func (l *library) header() *abi.Arena { return (*abi.Arena)(unsafe.Pointer(&l.arena[0])) }

// conn is one slot as the library sees it.
type conn struct {
	l      *library
	slot   uint32
	a      *abi.Aconn
	fd     int
	acked  uint32
	ackNow bool
}

func (l *library) conn(slot uint32, sock *raw) *conn {
	h := l.header()
	return &conn{l: l, slot: slot, fd: sock.fd,
		a: (*abi.Aconn)(unsafe.Pointer(&l.arena[h.ConnsOffset+uint64(slot)*h.ConnStride]))}
}

func (c *conn) phase() abi.Phase { return abi.Phase(atomic.LoadUint32(&c.a.Phase)) }

func (c *conn) setPhase(p abi.Phase) {
	atomic.StoreUint32(&c.a.Phase, uint32(p))
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&c.a.Phase)), 1, 1<<30, 0, 0, 0)
}

func (c *conn) await(while abi.Phase) abi.Phase {
	c.l.t.Helper()
	for deadline := time.Now().Add(4 * time.Second); time.Now().Before(deadline); {
		if p := c.phase(); p != while {
			return p
		}
		time.Sleep(20 * time.Microsecond)
	}
	c.l.t.Fatalf("slot %d stays in phase %d", c.slot, while)
	return 0
}

func (c *conn) tell(t abi.MsgType, reason abi.PathReason, fd int) {
	c.l.send(control.Slot(t, c.slot, c.a.Generation, reason), fd)
}

func (c *conn) observe() abi.Phase {
	c.l.t.Helper()
	c.setPhase(abi.PhaseObserveReq)
	c.tell(abi.MsgTypeObserve, 0, c.fd)
	return c.await(abi.PhaseObserveReq)
}

func (c *conn) pub() *abi.Pub {
	return (*abi.Pub)(unsafe.Pointer(&c.l.pub[uint64(c.slot)*uint64(unsafe.Sizeof(abi.Pub{}))]))
}

// makeFast switches and takes what was held meanwhile.
func (c *conn) makeFast() abi.Phase {
	c.l.t.Helper()
	c.setPhase(abi.PhaseSwitchReq)
	c.tell(abi.MsgTypeSwitch, 0, -1)
	p := c.await(abi.PhaseSwitchReq)
	if p != abi.PhaseFast {
		return p
	}
	if n := must1(c.l.t)(unix.IoctlGetInt(c.fd, unix.SIOCINQ)); n != 0 {
		c.l.t.Errorf("%d octets are left in the kernel's queue", n)
	}
	c.replay()
	c.transmit(nil, 0) // the kernel's window may have been shut
	return p
}

// demote gives the connection back: freeze, drain, wait, re-inject.
func (c *conn) demote(reason abi.PathReason) abi.Phase {
	c.l.t.Helper()
	c.setPhase(abi.PhaseDemoteReq)
	c.tell(abi.MsgTypeDemote, reason, -1)
	p := c.await(abi.PhaseDemoteReq)
	if p == abi.PhaseFrozen {
		c.drain()
		// The daemon does not wait if there was nothing to take.
		atomic.CompareAndSwapUint32(&c.a.Phase, uint32(abi.PhaseFrozen), uint32(abi.PhaseDrained))
		p = c.await(abi.PhaseDrained)
	}
	if p != abi.PhaseDemoted && p != abi.PhaseDemoteFailed {
		c.l.t.Fatalf("phase %d after DEMOTE", p)
	}
	c.reinject()
	return p
}

func (c *conn) reinject() {
	c.l.t.Helper()
	c.drain()
	c.setPhase(abi.PhaseReinjectReq)
	c.tell(abi.MsgTypeReinject, 0, -1)
	if p := c.await(abi.PhaseReinjectReq); p != abi.PhaseFree {
		c.l.t.Fatalf("phase %d after REINJECT", p)
	}
}

// drain takes descriptors up to the proof.
func (c *conn) drain() {
	c.l.t.Helper()
	delivered := word(c.l.pub, uint64(c.l.rings.FirstRing)*64)
	for deadline := time.Now().Add(2 * time.Second); c.l.taken != atomic.LoadUint32(delivered); c.poll() {
		if time.Now().After(deadline) {
			c.l.t.Fatalf("took %d frames, %d delivered", c.l.taken, atomic.LoadUint32(delivered))
		}
	}
}

// poll takes what the ring holds.
func (c *conn) poll() {
	l := c.l
	for *l.rx.consumer() != atomic.LoadUint32(l.rx.producer()) {
		at := l.rx.offs.Desc + uint64(*l.rx.consumer()&(l.rx.size-1))*16
		addr := binary.NativeEndian.Uint64(l.rx.mem[at:])
		length := binary.NativeEndian.Uint32(l.rx.mem[at+8:])
		meta := (*abi.RxMeta)(unsafe.Pointer(&l.umem[addr-uint64(unsafe.Sizeof(abi.RxMeta{}))]))
		if c.take(meta, addr, length) {
			l.giveFrame(addr)
		}
		l.taken++
		atomic.StoreUint32(l.rx.consumer(), *l.rx.consumer()+1)
	}
	const report = abi.RingSize / 4 // frames taken without a word about it
	if c.phase() == abi.PhaseFast && (c.a.Rcv.Nxt != c.acked || c.ackNow || l.taken-l.reported > report) {
		c.transmit(nil, 0)
	}
}

// nextMeta is what stands in front of the next frame in the ring.
func (l *library) nextMeta() *abi.RxMeta {
	at := l.rx.offs.Desc + uint64(*l.rx.consumer()&(l.rx.size-1))*16
	addr := binary.NativeEndian.Uint64(l.rx.mem[at:])
	return (*abi.RxMeta)(unsafe.Pointer(&l.umem[addr-uint64(unsafe.Sizeof(abi.RxMeta{}))]))
}

// take handles a frame; false if it stays in the stash.
func (c *conn) take(m *abi.RxMeta, addr uint64, length uint32) bool {
	if uint32(m.Slot) != c.slot || m.Generation != c.a.Generation {
		return true
	}
	if abi.RxKind(m.Kind) == abi.RxKindData {
		c.accept(m.Seq, c.l.umem[addr+uint64(m.Offset):][:m.Length])
		return true
	}
	if k := abi.RxKind(m.Kind); k != abi.RxKindHeld && k != abi.RxKindCtl {
		c.ackNow = c.ackNow || k == abi.RxKindProbe
		return true
	}
	h := c.l.header()
	stash := unsafe.Slice((*abi.Stash)(unsafe.Pointer(&c.l.arena[h.StashOffset])), h.StashSize)
	for i := range stash {
		if stash[i].State == 0 {
			c.l.order++
			c.l.stashed++
			stash[i] = abi.Stash{Addr: addr, Length: length, Slot: m.Slot, State: 1, Generation: m.Generation, Order: c.l.order}
			return false
		}
	}
	c.l.t.Fatal("stash is full")
	return true
}

// accept takes in-order octets that there is room for: the kernel may have
// offered the peer more than the buffer holds.
func (c *conn) accept(seq uint32, payload []byte) {
	skip := c.a.Rcv.Nxt - seq
	if skip > uint32(len(payload)) || int(c.a.Rcv.Nxt-c.a.Rcv.Read)+len(payload) > abi.RcvBuf {
		c.ackNow = true
		return
	}
	c.put(c.a.Rcv.Nxt, payload[skip:])
	c.a.Rcv.Nxt += uint32(len(payload)) - skip
}

func (c *conn) put(seq uint32, data []byte) {
	ring := c.buffer(abi.SndBuf, abi.RcvBuf)
	for i, b := range data {
		ring[(seq+uint32(i)-c.a.Rcv.Base)&(abi.RcvBuf-1)] = b
	}
}

func (c *conn) buffer(offset, size uint64) []byte {
	h := c.l.header()
	return c.l.arena[h.BuffersOffset+uint64(c.slot)*h.BufferStride+offset:][:size]
}

// replay takes held in-order payload right after the switch.
func (c *conn) replay() {
	h := c.l.header()
	stash := unsafe.Slice((*abi.Stash)(unsafe.Pointer(&c.l.arena[h.StashOffset])), h.StashSize)
	c.poll()
	for i := range stash {
		s := &stash[i]
		if s.State != 1 || uint32(s.Slot) != c.slot {
			continue
		}
		ip := c.l.umem[s.Addr+14:]
		tcp := ip[20:]
		payload := ip[20+int(tcp[12]>>4)*4 : binary.BigEndian.Uint16(ip[2:])]
		c.accept(binary.BigEndian.Uint32(tcp[4:]), payload)
		c.l.giveFrame(s.Addr)
		*s = abi.Stash{}
	}
}

// read waits for n octets of the fast path.
func (c *conn) read(n int) []byte {
	c.l.t.Helper()
	for deadline := time.Now().Add(3 * time.Second); c.a.Rcv.Nxt-c.a.Rcv.Read < uint32(n); c.poll() {
		if time.Now().After(deadline) {
			c.l.t.Fatalf("%d octets of %d came", c.a.Rcv.Nxt-c.a.Rcv.Read, n)
		}
	}
	out := make([]byte, n)
	ring := c.buffer(abi.SndBuf, abi.RcvBuf)
	for i := range out {
		out[i] = ring[(c.a.Rcv.Read+uint32(i)-c.a.Rcv.Base)&(abi.RcvBuf-1)]
	}
	c.a.Rcv.Read += uint32(n)
	return out
}

// queue puts octets into the send buffer without sending.
func (c *conn) queue(data []byte) {
	ring := c.buffer(0, abi.SndBuf)
	for i, b := range data {
		ring[(c.a.Snd.End+uint32(i)-c.a.Snd.Base)&(abi.SndBuf-1)] = b
	}
	c.a.Snd.End += uint32(len(data))
}

// push sends n queued octets.
func (c *conn) push(n int) {
	ring := c.buffer(0, abi.SndBuf)
	for n > 0 {
		part := make([]byte, min(n, int(c.a.Mss)))
		for i := range part {
			part[i] = ring[(c.a.Snd.Nxt+uint32(i)-c.a.Snd.Base)&(abi.SndBuf-1)]
		}
		c.transmit(part, c.a.Snd.Nxt)
		c.a.Snd.Nxt += uint32(len(part))
		n -= len(part)
	}
}

func (c *conn) write(data []byte) {
	c.queue(data)
	c.push(len(data))
}

// transmit writes one frame to the tap.
func (c *conn) transmit(payload []byte, seq uint32) {
	c.l.t.Helper()
	if payload == nil {
		seq = c.a.Snd.Nxt
	}
	h := abi.TxHeader{
		Magic: abi.Magic ^ abi.Version, Slot: c.slot, Generation: c.a.Generation,
		Seq: seq, Ack: c.a.Rcv.Nxt, Wnd: min(c.a.RcvWindow, c.a.Rcv.Read+abi.RcvBuf-c.a.Rcv.Nxt),
		Ring: c.l.rings.FirstRing, Consumed: c.l.taken,
		Length: uint16(len(payload)), Csum: onesSum(payload),
	}
	frame, err := binary.Append(nil, binary.NativeEndian, &h)
	must(c.l.t, err)
	frame = append(frame, make([]byte, abi.HeaderRoom-len(frame))...)
	n, err := unix.Write(c.l.tap, append(frame, payload...))
	if err != nil || n != abi.HeaderRoom+len(payload) {
		c.l.t.Fatalf("tap took %d octets, %v", n, err)
	}
	c.acked, c.ackNow, c.l.reported = c.a.Rcv.Nxt, false, c.l.taken
}

// onesSum is the sum as it lies in memory.
func onesSum(b []byte) uint16 {
	var s uint32
	for i, v := range b {
		s += uint32(v) << (8 * (i & 1))
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func (c *conn) String() string {
	return fmt.Sprintf("slot %d phase %d snd %+v rcv %d/%d/%d", c.slot, c.phase(), c.a.Snd, c.a.Rcv.Base, c.a.Rcv.Read, c.a.Rcv.Nxt)
}
