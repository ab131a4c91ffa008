// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

func encode(t testing.TB, message any) []byte {
	t.Helper()
	b, err := binary.Append(nil, binary.NativeEndian, message)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func register() *abi.MsgRegister {
	m := &abi.MsgRegister{H: header(abi.MsgTypeRegister)}
	for i, c := range []byte("redis\x01\xffx") {
		m.Comm[i] = int8(c)
	}
	return m
}

func TestDecode(t *testing.T) {
	m, err := Decode(encode(t, Slot(abi.MsgTypeObserve, 40, 0, 0)), []int{7})
	if err != nil || m.Type != abi.MsgTypeObserve || m.Slot.Slot != 40 || m.Fd != 7 {
		t.Errorf("OBSERVE: %+v, %v", m, err)
	}
	m, err = Decode(encode(t, register()), nil)
	if err != nil || m.Comm() != "redis??x" {
		t.Errorf("REGISTER: %q, %v", m.Comm(), err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := encode(t, Slot(abi.MsgTypeSwitch, 40, 1, 0))
	change := func(at int, to byte) []byte {
		b := append([]byte(nil), good...)
		b[at] = to
		return b
	}
	for name, c := range map[string]struct {
		packet []byte
		fds    []int
	}{
		"empty":             {nil, nil},
		"header only":       {good[:8], nil},
		"short":             {good[:len(good)-1], nil},
		"long":              {append(append([]byte(nil), good...), 0), nil},
		"magic":             {change(0, 0), nil},
		"version":           {change(4, 99), nil},
		"unknown type":      {change(6, 99), nil},
		"daemon's message":  {encode(t, Slot(abi.MsgTypePleaseDemote, 0, 0, 0)), nil},
		"unwanted fd":       {good, []int{5}},
		"missing fd":        {encode(t, Slot(abi.MsgTypeObserve, 40, 0, 0)), nil},
		"size of other":     {encode(t, register())[:24], nil},
		"register with fds": {encode(t, register()), []int{3}},
	} {
		if _, err := Decode(c.packet, c.fds); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(f, register()), 0)
	f.Add(encode(f, Slot(abi.MsgTypeObserve, 40, 0, 0)), 1)
	f.Fuzz(func(t *testing.T, packet []byte, fds int) {
		m, err := Decode(packet, make([]int, uint(fds)%maxFds))
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("error of another kind: %v", err)
		}
		if err == nil && len(packet) != kinds[m.Type].size {
			t.Errorf("message %d of %d octets accepted", m.Type, len(packet))
		}
		_ = m.Comm()
	})
}

// connect makes a session and the program's end of it.
func connect(t testing.TB) (*Session, int) {
	t.Helper()
	dir := t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, SocketName)}); err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s.Peer.Pidfd); s.Close() })
	return s, fd
}

// FuzzSession sends packets with descriptors over a live session: whatever
// comes, the descriptors end with the message or are closed.
func FuzzSession(f *testing.F) {
	f.Add(encode(f, register()), uint8(0))
	f.Add(encode(f, Slot(abi.MsgTypeObserve, 40, 0, 0)), uint8(1))
	f.Add(encode(f, Slot(abi.MsgTypeDemoteForeign, 40, 0, 0)), uint8(2))
	f.Add(make([]byte, maxPacket+1), uint8(maxFds+1))
	s, peer := connect(f)
	expected := -1
	// The descriptor that the next open gets.
	lowest := func(t *testing.T) int {
		fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		return fd
	}
	f.Fuzz(func(t *testing.T, packet []byte, fds uint8) {
		if expected < 0 {
			expected = lowest(t)
		}
		rights := make([]int, fds%32)
		for i := range rights {
			rights[i] = peer
		}
		if len(packet) == 0 || len(packet) > 4*maxPacket {
			return // an empty packet is the end of a session
		}
		var oob []byte
		if len(rights) > 0 {
			oob = unix.UnixRights(rights...)
		}
		if err := unix.Sendmsg(peer, packet, oob, nil, 0); err != nil {
			t.Fatal(err)
		}
		m, err := s.Receive()
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("error of another kind: %v", err)
		}
		if err == nil && m.Fd >= 0 {
			unix.Close(m.Fd)
		}
		if now := lowest(t); now != expected {
			t.Errorf("descriptor %d is open after %d octets with %d descriptors", expected, len(packet), len(rights))
		}
	})
}

func TestSessionKnowsItsPeer(t *testing.T) {
	s, _ := connect(t)
	if s.Peer.Pid != os.Getpid() || s.Peer.Uid != uint32(os.Getuid()) || s.Peer.Pidfd < 0 {
		t.Errorf("peer %+v", s.Peer)
	}
}

func TestSessionPassesDescriptors(t *testing.T) {
	s, fd := connect(t)
	if err := unix.Sendmsg(fd, encode(t, Slot(abi.MsgTypeObserve, 33, 0, 0)), unix.UnixRights(0), nil, 0); err != nil {
		t.Fatal(err)
	}
	m, err := s.Receive()
	if err != nil || m.Fd < 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	defer unix.Close(m.Fd)
	if flags, err := unix.FcntlInt(uintptr(m.Fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %d, %v", flags, err)
	}
	if err := s.Send(Done(abi.MsgTypeTapReady, 0), m.Fd); err != nil {
		t.Error(err)
	}
}

func TestUnwantedDescriptorsAreClosed(t *testing.T) {
	s, fd := connect(t)
	before := openFiles(t)
	for range 10 {
		if err := unix.Sendmsg(fd, encode(t, Slot(abi.MsgTypeSwitch, 33, 0, 0)), unix.UnixRights(0, 1, 2), nil, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Receive(); !errors.Is(err, ErrProtocol) {
			t.Fatalf("error %v", err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d open files, before %d", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// Without a free descriptor nobody can be accepted, for a while.
func TestAcceptOutlastsExhaustion(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error)
	go func() {
		s, err := l.Accept()
		if err == nil {
			unix.Close(s.Peer.Pidfd)
			s.Close()
		}
		accepted <- err
	}()
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, SocketName)})
	time.Sleep(3 * acceptPause)
	if back := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil || back != nil {
		t.Fatal(err, back)
	}
	if err := <-accepted; err != nil {
		t.Errorf("listener gave up: %v", err)
	}
}

func TestEndOfSession(t *testing.T) {
	s, fd := connect(t)
	unix.Shutdown(fd, unix.SHUT_RDWR)
	if _, err := s.Receive(); err != io.EOF {
		t.Errorf("peer closed: %v", err)
	}
	s, _ = connect(t)
	go s.Stop()
	if _, err := s.Receive(); err != io.EOF {
		t.Errorf("stopped: %v", err)
	}
}
