// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/scm"
)

// SocketName is the control socket in the run directory.
const SocketName = "control.sock"

const (
	backlog = 128
	// Programs may send more descriptors than any message has; they are
	// received to be closed.
	maxFds    = 8
	maxPacket = 256

	acceptPause = 10 * time.Millisecond
)

// Peer is the process at the other end, as the kernel says.
type Peer struct {
	Pid   int
	Uid   uint32
	Pidfd int
}

// Listener accepts programs.
type Listener struct {
	fd   int
	path string
}

// Listen makes the control socket. Everybody may connect: policy decides.
func Listen(runDir string) (*Listener, error) {
	l := &Listener{path: filepath.Join(runDir, SocketName)}
	var err error
	if l.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("create control socket: %w", err)
	}
	// Left over by a daemon that died; the caller holds the lock that says
	// that there is no other.
	if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		unix.Close(l.fd)
		return nil, fmt.Errorf("remove old control socket: %w", err)
	}
	for _, step := range []func() error{
		func() error { return unix.Bind(l.fd, &unix.SockaddrUnix{Name: l.path}) },
		func() error { return os.Chmod(l.path, 0o666) },
		func() error { return unix.Listen(l.fd, backlog) },
	} {
		if err := step(); err != nil {
			unix.Close(l.fd)
			return nil, fmt.Errorf("listen on %s: %w", l.path, err)
		}
	}
	return l, nil
}

// Accept waits for a program; net.ErrClosed-like errors follow Close.
func (l *Listener) Accept() (*Session, error) {
	for {
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if exhausted(err) {
			time.Sleep(acceptPause)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("accept on %s: %w", l.path, err)
		}
		// An error is the program's: it is gone already.
		if s, err := newSession(fd); err == nil {
			return s, nil
		}
	}
}

// exhausted says whether an error passes when others give something back.
func exhausted(err error) bool {
	return err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOBUFS || err == unix.ENOMEM
}

// Close stops accepting.
func (l *Listener) Close() {
	_ = os.Remove(l.path)
	_ = unix.Shutdown(l.fd, unix.SHUT_RDWR) // wakes Accept
	_ = unix.Close(l.fd)
}

// identify asks the kernel who is at the other end. The pidfd, unlike the pid,
// stays the same process for ever.
func identify(fd int) (Peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	p := Peer{Pid: int(cred.Pid), Uid: cred.Uid}
	p.Pidfd, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 6.5
		p.Pidfd, err = unix.PidfdOpen(p.Pid, 0)
	}
	if err != nil {
		return p, fmt.Errorf("pidfd of process %d: %w", p.Pid, err)
	}
	return p, nil
}

// Session is the connection of one program. One goroutine receives; any may
// send. Whoever takes Peer.Pidfd over closes it.
type Session struct {
	Peer Peer

	mu     sync.Mutex // held to send and to close
	fd     int        // of file
	closed bool

	file *os.File
	raw  syscall.RawConn // of file
}

func newSession(fd int) (*Session, error) {
	s := &Session{fd: fd}
	err := unix.SetNonblock(fd, true) // for Go's poller
	s.file = os.NewFile(uintptr(fd), "session")
	if err == nil {
		s.raw, err = s.file.SyscallConn()
	}
	if err == nil {
		s.Peer, err = identify(fd)
	}
	if err != nil {
		s.file.Close()
		return nil, fmt.Errorf("begin a session: %w", err)
	}
	return s, nil
}

// SetDeadline bounds how long Receive waits; the zero time is for ever.
func (s *Session) SetDeadline(t time.Time) error { return s.file.SetReadDeadline(t) }

// Receive waits for the next message. io.EOF means that the program has closed,
// or Stop was called. It waits in Go's poller: while a thread waits in a system
// call, Go's monitor wakes up every 20 µs for some milliseconds, and it is a
// real-time thread like all others here.
func (s *Session) Receive() (Message, error) {
	packet, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(maxFds*4))
	var n, oobn, flags int
	var err error
	waited := s.raw.Read(func(fd uintptr) bool {
		for err = unix.EINTR; err == unix.EINTR; {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), packet, oob, unix.MSG_CMSG_CLOEXEC)
		}
		return err != unix.EAGAIN
	})
	if waited != nil {
		err = waited
	}
	if err == unix.ECONNRESET || (err == nil && n == 0 && oobn == 0) {
		return Message{Fd: -1}, io.EOF
	}
	if err != nil {
		return Message{Fd: -1}, fmt.Errorf("receive control message: %w", err)
	}
	fds, err := scm.Descriptors(oob[:oobn])
	if err != nil {
		err = fmt.Errorf("%w: %w", err, ErrProtocol)
	} else if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("message too long: %w", ErrProtocol)
	}
	m := Message{Fd: -1}
	if err == nil {
		m, err = Decode(packet[:n], fds)
	}
	if err != nil {
		scm.Close(fds)
	}
	return m, err
}

// Send sends a message, never waiting for a program that does not read. The
// descriptors stay the caller's.
func (s *Session) Send(message any, fds ...int) error {
	packet, err := binary.Append(nil, binary.NativeEndian, message)
	if err != nil {
		return fmt.Errorf("encode %T: %w", message, err)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("send %T: %w", message, io.ErrClosedPipe)
	}
	if err := unix.Sendmsg(s.fd, packet, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("send %T to process %d: %w", message, s.Peer.Pid, err)
	}
	return nil
}

// Stop makes Receive return io.EOF.
func (s *Session) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		_ = unix.Shutdown(s.fd, unix.SHUT_RDWR) // fails only if the peer is gone
	}
}

// Close closes the socket; only the receiving goroutine may.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		_ = s.file.Close()
	}
}
