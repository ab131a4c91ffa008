// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

func loadSockets(t *testing.T) *Sockets {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := LoadSockets(LoadOptions{})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// socket makes a TCP socket, lets prepare have it, and connects it.
func socket(t *testing.T, prepare func(fd int) error) (fd int, peer net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := prepare(fd); err != nil {
		t.Fatal(err)
	}
	to := &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Connect(fd, to); err != nil {
		t.Fatal(err)
	}
	if peer, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	return fd, peer
}

// duplicate makes more descriptors of a socket.
func duplicate(t *testing.T, times int) func(fd int) error {
	return func(fd int) error {
		for range times {
			other, err := unix.Dup(fd)
			if err != nil {
				return err
			}
			t.Cleanup(func() { unix.Close(other) })
		}
		return nil
	}
}

func TestTraits(t *testing.T) {
	s := loadSockets(t)
	bind := func(address [4]byte, port int) func(int) error {
		return func(fd int) error {
			return unix.Bind(fd, &unix.SockaddrInet4{Addr: address, Port: port})
		}
	}
	here := [4]byte{127, 0, 0, 1}
	for name, c := range map[string]struct {
		prepare, after func(fd int) error
		want           abi.SockTrait
	}{
		"plain":         {},
		"address bound": {bind(here, 0), nil, abi.SockTraitAddressBound},
		"port bound":    {bind([4]byte{}, 20001), nil, abi.SockTraitPortBound},
		"both bound":    {bind(here, 20002), nil, abi.SockTraitAddressBound | abi.SockTraitPortBound},
		"signed": {nil, func(fd int) error {
			key := unix.TCPMD5Sig{Keylen: 3, Key: [80]byte{'k', 'e', 'y'}}
			key.Addr.Family = unix.AF_INET
			copy(key.Addr.Data[2:], []byte{127, 0, 0, 9})
			return unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &key)
		}, abi.SockTraitSigned},
		"taken": {nil, func(fd int) error {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err != nil {
				return err
			}
			t.Cleanup(func() { m.Close() })
			return m.Put(uint32(0), uint32(fd))
		}, abi.SockTraitTaken},
		"two descriptors":   {nil, duplicate(t, 1), 0},
		"three descriptors": {nil, duplicate(t, 2), abi.SockTraitShared},
	} {
		t.Run(name, func(t *testing.T) {
			if c.prepare == nil {
				c.prepare = func(int) error { return nil }
			}
			fd, peer := socket(t, c.prepare)
			if c.after != nil {
				if err := c.after(fd); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := s.Inspect(fd); err != nil || got != c.want {
				t.Errorf("traits %#x, %v; want %#x", got, err, c.want)
			}
			_ = peer
		})
	}
	fd, peer := socket(t, func(int) error { return nil })
	raw, err := peer.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(p uintptr) { err = unix.Sendto(int(p), []byte("u"), unix.MSG_OOB, nil) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		got, err := s.Inspect(fd)
		if err == nil && got == abi.SockTraitUrgent {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("urgent data: traits %#x, %v", got, err)
		}
	}
}

func TestInspectionOfAnotherSocket(t *testing.T) {
	s := loadSockets(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := s.Inspect(fd); err == nil {
		t.Error("a UDP socket has TCP traits")
	}
	if _, err := s.Inspect(0); err == nil {
		t.Error("a file has TCP traits")
	}
}

// A sleeping socket takes nothing, answers nothing and counts what came.
func TestDropFilterCounts(t *testing.T) {
	s := loadSockets(t)
	fd, peer := socket(t, func(int) error { return nil })
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, s.DropFilter()); err != nil {
		t.Fatal(err)
	}
	count := func() (one, all uint64) {
		t.Helper()
		one, err := s.StraysOf(cookie)
		if err != nil {
			t.Fatal(err)
		}
		if all, err = s.Strays(); err != nil {
			t.Fatal(err)
		}
		return one, all
	}
	if one, all := count(); one != 0 || all != 0 {
		t.Fatalf("%d and %d strays before any", one, all)
	}
	if _, err := peer.Write([]byte("stray")); err != nil {
		t.Fatal(err)
	}
	var one, all uint64
	for deadline := time.Now().Add(2 * time.Second); one < 2 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		one, all = count()
	}
	if one < 2 || all != one {
		t.Errorf("%d strays of the socket, %d in all", one, all)
	}
	if n, _, err := unix.Recvfrom(fd, make([]byte, 9), unix.MSG_DONTWAIT); err != unix.EAGAIN {
		t.Errorf("sleeping socket: %d octets, %v", n, err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 9)
	if n, _, err := unix.Recvfrom(fd, buf, 0); err != nil || string(buf[:n]) != "stray" {
		t.Errorf("after it woke: %q, %v", buf[:max(n, 0)], err)
	}
	if other, _ := s.StraysOf(cookie + 1); other != 0 {
		t.Errorf("another socket has %d strays", other)
	}
}

// BenchmarkInspect is what each OBSERVE pays.
func BenchmarkInspect(b *testing.B) {
	s, err := LoadSockets(LoadOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for _, others := range []int{0, 1000} {
		for range others {
			f, err := unix.Dup(0)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { unix.Close(f) })
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("among %d descriptors", others), func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Inspect(fd); err != nil {
					b.Fatal(err)
				}
			}
		})
		unix.Close(fd)
	}
}
