// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connection over loopback: the socket under test, which repair
// changes, and its peer.
type pair struct {
	conn socket
	fd   int // the same
	peer *net.TCPConn
}

// socket is the end under test. It is in no epoll set: one would report an
// error while the socket is rebuilt, and Go's poller remembers that for ever.
type socket int

const patience = 3 * time.Second

func (s socket) await(events int16) error {
	p := []unix.PollFd{{Fd: int32(s), Events: events}}
	n, err := unix.Poll(p, int(patience.Milliseconds()))
	if err == nil && n == 0 {
		return os.ErrDeadlineExceeded
	}
	return err
}

func (s socket) Read(b []byte) (int, error) {
	if err := s.await(unix.POLLIN); err != nil {
		return 0, err
	}
	n, err := unix.Read(int(s), b)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

func (s socket) Write(b []byte) (done int, err error) {
	for done < len(b) && err == nil {
		var n int
		if err = s.await(unix.POLLOUT); err == nil {
			n, err = unix.Write(int(s), b[done:])
			done += max(n, 0)
		}
	}
	return done, err
}

func newPair(t *testing.T, accepted bool) *pair {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("TCP_REPAIR needs CAP_NET_ADMIN")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn, peer := c.(*net.TCPConn), s.(*net.TCPConn)
	if accepted {
		conn, peer = peer, conn
	}
	f, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close() // f is a duplicate
	t.Cleanup(func() { f.Close(); peer.Close() })
	p := &pair{conn: socket(f.Fd()), fd: int(f.Fd()), peer: peer}
	if err := unix.SetNonblock(p.fd, true); err != nil {
		t.Fatal(err)
	}
	p.exchange(t, []byte("before"))
	return p
}

func (p *pair) exchange(t *testing.T, data []byte) {
	t.Helper()
	for _, way := range []struct {
		from io.Writer
		to   io.Reader
	}{{p.conn, p.peer}, {p.peer, p.conn}} {
		if _, err := way.from.Write(data); err != nil {
			t.Fatalf("write: %v", err)
		}
		if err := receive(way.to, data); err != nil {
			t.Fatal(err)
		}
	}
}

func receive(c io.Reader, want []byte) error {
	got := make([]byte, len(want))
	if conn, ok := c.(*net.TCPConn); ok {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
	}
	if n, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("read %d of %d: %w", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("content of %d octets differs", len(want))
	}
	return nil
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func planFrom(t *testing.T, p *pair, s State) *Plan {
	t.Helper()
	local, remote, err := Addresses(p.fd)
	if err != nil {
		t.Fatal(err)
	}
	return &Plan{
		Local: local, Remote: remote, Options: s.Options, TSOffset: s.TSOffset,
		RcvNxt: s.RcvNxt, SndUna: s.WriteSeq,
		RightEdge: s.RcvNxt.Add(int(s.Window.RcvWnd)),
		SndWnd:    s.Window.SndWnd, MaxWnd: s.Window.MaxWindow,
	}
}

func rebuild(t *testing.T, p *pair, plan *Plan, probe bool) {
	t.Helper()
	reuse, err := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Rebuild(p.fd); err != nil {
		t.Fatal(err)
	}
	if err := Leave(p.fd, probe, reuse); err != nil {
		t.Fatal(err)
	}
	if err := plan.Send(p.fd); err != nil {
		t.Fatal(err)
	}
}

func TestRoundTrip(t *testing.T) {
	for name, accepted := range map[string]bool{"connected": false, "accepted": true} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, accepted)
			info, err := ReadInfo(p.fd)
			if err != nil {
				t.Fatal(err)
			}
			segment := info.Snd_mss
			var first State
			for i := range 20 {
				s, err := Dump(p.fd)
				if err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					first = s
				}
				if s.Options != first.Options {
					t.Fatalf("round %d: options %+v, at first %+v", i, s.Options, first.Options)
				}
				rebuild(t, p, planFrom(t, p, s), i%2 == 0)
				p.exchange(t, random(t, 1000))
				if info, err := ReadInfo(p.fd); err != nil || info.Snd_mss < segment {
					t.Fatalf("round %d: sends segments of %d octets, at first %d (%v)", i, info.Snd_mss, segment, err)
				}
			}
		})
	}
}

func TestDumpLeavesTheSocketAsItWas(t *testing.T) {
	p := newPair(t, false)
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err := Dump(p.fd); err != nil {
			t.Fatal(err)
		}
	}
	p.exchange(t, random(t, 5000))
	if v, err := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || v != 1 {
		t.Errorf("SO_REUSEADDR %d, %v", v, err)
	}
	if v, err := unix.GetsockoptInt(p.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil || v != 0 {
		t.Errorf("TCP_REPAIR %d, %v", v, err)
	}
}

// Unread octets: what the fast path received and the program has not read.
// Here the kernel received them, and the rebuild takes and returns them.
func TestUnreadOctetsAreReadAfterwards(t *testing.T) {
	for _, n := range []int{1, 5000, 200 << 10} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			p := newPair(t, false)
			unread := random(t, n)
			if _, err := p.peer.Write(unread); err != nil {
				t.Fatal(err)
			}
			if err := receive(p.conn, unread); err != nil {
				t.Fatal(err)
			}
			s, err := Dump(p.fd)
			if err != nil {
				t.Fatal(err)
			}
			before, _ := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
			plan := planFrom(t, p, s)
			plan.Unread = unread
			rebuild(t, p, plan, false)
			if after, _ := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUF); after != before {
				t.Errorf("SO_RCVBUF %d, before %d", after, before)
			}
			if lock, err := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK); err != nil || lock != 0 {
				t.Errorf("SO_BUF_LOCK %d, %v", lock, err)
			}
			if got, err := unix.IoctlGetInt(p.fd, unix.SIOCINQ); err != nil || got != n {
				t.Errorf("SIOCINQ %d, %v", got, err)
			}
			if err := receive(p.conn, unread); err != nil {
				t.Fatal(err)
			}
			p.exchange(t, random(t, 3000))
		})
	}
}

// Octets in flight that the peer has never seen must reach it, those that it
// has already must not arrive twice, and unsent octets follow.
func TestInFlightAndUnsent(t *testing.T) {
	for name, seen := range map[string]int{"lost": 0, "partly seen": 20000, "all seen": 50000} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, false)
			data := random(t, 300000)
			s, err := Dump(p.fd)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.conn.Write(data[:seen]); err != nil {
				t.Fatal(err)
			}
			if err := receive(p.peer, data[:seen]); err != nil {
				t.Fatal(err)
			}
			plan := planFrom(t, p, s) // as if no acknowledgement had come
			plan.InFlight, plan.Unsent, plan.Sample = data[:50000], data[50000:], seen%40000 == 0
			rebuild(t, p, plan, true)
			if err := receive(p.peer, data[seen:]); err != nil {
				t.Fatal(err)
			}
			p.exchange(t, random(t, 3000))
		})
	}
}

// The first acknowledgement gives the kernel a round-trip time, even if nothing
// that was in flight has arrived.
func TestSample(t *testing.T) {
	for _, sample := range []bool{false, true} {
		p := newPair(t, false)
		s, err := Dump(p.fd)
		if err != nil {
			t.Fatal(err)
		}
		plan := planFrom(t, p, s)
		plan.InFlight, plan.Sample = random(t, 10000), sample
		rebuild(t, p, plan, true)
		if _, err := p.peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := receive(p.conn, []byte("x")); err != nil {
			t.Fatal(err)
		}
		info, err := ReadInfo(p.fd)
		if err != nil {
			t.Fatal(err)
		}
		if measured := info.Rtt != 0; measured != sample {
			t.Errorf("sample %v: round-trip time %d µs", sample, info.Rtt)
		}
		if err := receive(p.peer, plan.InFlight); err != nil {
			t.Fatal(err)
		}
		p.exchange(t, random(t, 3000))
	}
}

func TestFailedRebuildLooksLikeAReset(t *testing.T) {
	p := newPair(t, false)
	s, err := Dump(p.fd)
	if err != nil {
		t.Fatal(err)
	}
	plan := planFrom(t, p, s)
	plan.Options.WindowScale, plan.Options.SndWscale = true, 15 // beyond the limit of RFC 7323
	if err := plan.Rebuild(p.fd); err == nil {
		t.Fatal("an impossible window scale was accepted")
	}
	Abandon(p.fd)
	if info, err := ReadInfo(p.fd); err != nil || info.Established() {
		t.Errorf("state %v, %v", info, err)
	}
}
