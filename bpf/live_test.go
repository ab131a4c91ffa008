// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// These tests let the kernel do what the verdicts say: programs are attached
// and frames cross real taps, veths and AF_XDP sockets.

func attach(t *testing.T, prog *ebpf.Program, ifindex int) {
	t.Helper()
	x, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
}

func trace(t *testing.T, l *lab) {
	t.Helper()
	tp, err := l.AttachTrace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tp.Close() })
}

func ifindexOf(t *testing.T, name string) int {
	t.Helper()
	i, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return i.Index
}

// packetSocket sends and receives whole frames at a device.
func packetSocket(t *testing.T, ifindex int) int {
	t.Helper()
	const all = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifindex}); err != nil {
		t.Fatal(err)
	}
	second := unix.Timeval{Sec: 1}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &second); err != nil {
		t.Fatal(err)
	}
	return fd
}

// receive returns the first frame at a packet socket with our source address.
func receive(t *testing.T, fd int, source [6]byte) []byte {
	t.Helper()
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			t.Fatalf("no frame: %v", err)
		}
		if n >= 14 && [6]byte(buf[6:]) == source {
			return buf[:n]
		}
	}
}

// openTap makes a single-queue tap with the egress program on it.
func openTap(t *testing.T, l *lab, name string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	tap := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { tap.Close() })
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	dev, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		t.Fatal(err)
	}
	attach(t, l.Egress, dev.Attrs().Index)
	if err := l.SetTap(dev.Attrs().Index, app, appGen); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.DeleteTap(dev.Attrs().Index) })
	return tap
}

func TestTapToWire(t *testing.T) {
	l := active(t, nil)
	trace(t, l)
	attach(t, l.Pass, ifindexOf(t, "w1")) // a veth takes XDP frames only then
	wire := packetSocket(t, ifindexOf(t, "w1"))
	tap := openTap(t, l, "tap0")

	frame := tapFrame(header(nil), "hello")
	if n, err := tap.Write(frame); err != nil || n != len(frame) {
		t.Fatal(n, err)
	}
	got, err := parseSent(receive(t, wire, usMAC))
	if err != nil {
		t.Fatal(err)
	}
	if got.seq != 5500 || got.data != "hello" {
		t.Errorf("on the wire: %+v", got)
	}
	if p := l.published(t); p.SndNxt != 5505 || p.TxErrors != 0 {
		t.Errorf("published %+v", p)
	}
}

// write() to a tap succeeds whatever becomes of the frame; the tracepoint has
// told the owner before write() returns.
func TestTraceTx(t *testing.T) {
	for _, c := range []struct {
		name  string
		set   func(*testing.T, *lab)
		errno unix.Errno
	}{
		{"device down", func(t *testing.T, l *lab) {
			setUp(t, "w0", false)
			t.Cleanup(func() { setUp(t, "w0", true) })
		}, unix.ENETDOWN},
		{"device's MTU too small", func(t *testing.T, l *lab) {
			setMTU(t, "w0", 68)
			t.Cleanup(func() { setMTU(t, "w0", 1500) })
		}, unix.EMSGSIZE},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := active(t, nil)
			trace(t, l)
			attach(t, l.Pass, ifindexOf(t, "w1"))
			c.set(t, l)
			tap := openTap(t, l, "tap0")
			drops := l.drops(t)
			frame := tapFrame(header(nil), "hello, a little longer than the smallest MTU")
			if _, err := tap.Write(frame); err != nil {
				t.Fatal(err)
			}
			p := l.published(t)
			if p.TxErrors != 1 || unix.Errno(p.TxErrno) != c.errno || p.Events != abi.EventTxError {
				t.Errorf("tx_errors %d, tx_errno %v, events %d; want errno %v", p.TxErrors, unix.Errno(p.TxErrno), p.Events, c.errno)
			}
			if got := countedSince(drops, l.drops(t)); got != "redirect_tx" {
				t.Errorf("counted %q", got)
			}
		})
	}
}

func setUp(t *testing.T, name string, up bool) {
	t.Helper()
	dev, err := netlink.LinkByName(name)
	if err == nil && up {
		err = netlink.LinkSetUp(dev)
	} else if err == nil {
		err = netlink.LinkSetDown(dev)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func setMTU(t *testing.T, name string, mtu int) {
	t.Helper()
	dev, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetMTU(dev, mtu)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An xskSocket is an AF_XDP socket with room for a few frames.
type xskSocket struct {
	fd       int
	umem, rx []byte
	offsets  unix.XDPMmapOffsets
}

const xskFrames = 8

// openXSK binds a socket to queue 0; fill says whether it gets frames.
func openXSK(t *testing.T, ifindex int, fill bool) *xskSocket {
	t.Helper()
	x := &xskSocket{}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	x.fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0)
	must(err)
	t.Cleanup(func() { unix.Close(x.fd) })
	x.umem, err = unix.Mmap(-1, 0, xskFrames*abi.FrameSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(err)
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&x.umem[0]))), Len: uint64(len(x.umem)), Size: abi.FrameSize}
	must(setsockopt(x.fd, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg)))
	for _, ring := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_RX_RING} {
		must(unix.SetsockoptInt(x.fd, unix.SOL_XDP, ring, xskFrames))
	}
	size := uint32(unsafe.Sizeof(x.offsets))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(x.fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&x.offsets)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	x.rx, err = unix.Mmap(x.fd, unix.XDP_PGOFF_RX_RING, int(x.offsets.Rx.Desc)+xskFrames*16,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(err)
	t.Cleanup(func() { unix.Munmap(x.rx); unix.Munmap(x.umem) }) // a mapping keeps the socket
	if fill {
		x.fill(t)
	}
	must(x.bind(ifindex))
	return x
}

func (x *xskSocket) fill(t *testing.T) {
	t.Helper()
	x.setFill(t, abi.FrameSize, xskFrames)
}

// setFill writes descriptors that are so many octets apart, and the producer.
func (x *xskSocket) setFill(t *testing.T, distance uint64, producer uint32) {
	t.Helper()
	ring, err := unix.Mmap(x.fd, unix.XDP_UMEM_PGOFF_FILL_RING, int(x.offsets.Fr.Desc)+xskFrames*8,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(ring) })
	for i := range uint64(xskFrames) {
		*(*uint64)(unsafe.Pointer(&ring[x.offsets.Fr.Desc+8*i])) = i * distance
	}
	*(*uint32)(unsafe.Pointer(&ring[x.offsets.Fr.Producer])) = producer
}

// bind waits until the kernel has let go of an earlier socket on the queue.
func (x *xskSocket) bind(ifindex int) error {
	var err error
	for range 100 {
		err = unix.Bind(x.fd, &unix.SockaddrXDP{Flags: unix.XDP_COPY, Ifindex: uint32(ifindex)})
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

func setsockopt(fd, option int, value unsafe.Pointer, size uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option),
		uintptr(value), size, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// next waits for descriptor n and returns metadata and frame.
func (x *xskSocket) next(t *testing.T, n uint32) (abi.RxMeta, []byte) {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(x.fd), Events: unix.POLLIN}}
	producer := (*uint32)(unsafe.Pointer(&x.rx[x.offsets.Rx.Producer]))
	if _, err := unix.Poll(poll, 1000); err != nil || *producer <= n {
		t.Fatalf("no frame: %v, producer %d", err, *producer)
	}
	desc := *(*unix.XDPDesc)(unsafe.Pointer(&x.rx[x.offsets.Rx.Desc+16*uint64(n)]))
	var meta abi.RxMeta
	copy(octets(&meta), x.umem[desc.Addr-uint64(unsafe.Sizeof(meta)):])
	return meta, x.umem[desc.Addr : desc.Addr+uint64(desc.Len)]
}

// fromWire has a segment arrive, and checks it as it comes out of the socket.
func fromWire(t *testing.T, l *lab, x *xskSocket) {
	t.Helper()
	attach(t, l.Ingress, l.ifindex)
	wire := packetSocket(t, ifindexOf(t, "w1"))
	seg := data(3)
	if _, err := unix.Write(wire, seg.frame()); err != nil {
		t.Fatal(err)
	}
	meta, frame := x.next(t, 0)
	want := abi.RxMeta{Slot: slot, Kind: uint16(abi.RxKindData), Generation: connGen, Offset: 66, Length: 3, Seq: 1000}
	if meta != want || string(frame) != string(seg.frame()) {
		t.Errorf("metadata %+v, frame % x", meta, frame)
	}
}

func TestWireToSocket(t *testing.T) {
	l := active(t, nil)
	trace(t, l)
	x := openXSK(t, l.ifindex, true)
	if err := l.SetXsk(app, ringNo, x.fd); err != nil {
		t.Fatal(err)
	}
	fromWire(t, l, x)
	if r := l.ring(t, ringNo); r.Delivered != 1 || r.Refused != 0 {
		t.Errorf("ring %+v", r)
	}
}

// A socket that has no frame to fill refuses: the delivery is taken back, or
// the proof "consumed = delivered" would never come true.
func TestTraceRx(t *testing.T) {
	l := active(t, nil)
	trace(t, l)
	x := openXSK(t, l.ifindex, false)
	if err := l.SetXsk(app, ringNo, x.fd); err != nil {
		t.Fatal(err)
	}
	attach(t, l.Ingress, l.ifindex)
	wire := packetSocket(t, ifindexOf(t, "w1"))
	drops := l.drops(t)
	if _, err := unix.Write(wire, data(3).frame()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Second)
	for l.ring(t, ringNo).Refused == 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if r := l.ring(t, ringNo); r.Delivered != 0 || r.Refused != 1 {
		t.Errorf("ring %+v", r)
	}
	if got := countedSince(drops, l.drops(t)); got != "redirect_rx" {
		t.Errorf("counted %q", got)
	}
}

// Redirects of others are not ours to judge.
func TestTraceForeign(t *testing.T) {
	l := active(t, nil)
	xsks, err := mapID(l.Xsks)
	if err != nil {
		t.Fatal(err)
	}
	before, drops := l.published(t), l.drops(t)
	for name, args := range map[string][7]uint64{
		"no map":                {3: 95},
		"another map":           {3: 95, 5: 1 << 30},
		"ring of nobody":        {3: 95, 5: uint64(xsks), 6: (app + 1) * abi.MaxRings},
		"ring out of the table": {3: 95, 5: uint64(xsks), 6: 1<<32 - 1},
	} {
		if _, err := l.RedirectErr.Run(&ebpf.RunOptions{Context: args}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if got := countedSince(drops, l.drops(t)); got != "" || l.published(t) != before {
		t.Errorf("counted %q, published %+v", got, l.published(t))
	}
}

// A frame handed to the kernel arrives there and is not seen by ingress.
func TestInjectToKernel(t *testing.T) {
	l := active(t, nil)
	attach(t, l.Ingress, l.ifindex)
	kernel := packetSocket(t, l.ifindex)
	frame := data(3).frame()
	if err := l.InjectToKernel(l.ifindex, frame); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, kernel, peerMAC); string(got) != string(frame) {
		t.Errorf("frame % x", got)
	}
	if d := l.ring(t, ringNo).Delivered; d != 0 {
		t.Errorf("delivered %d", d)
	}
}
