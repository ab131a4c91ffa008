// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
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

const patience = 15 * time.Second

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
	return connectPair(t, "127.0.0.1", "127.0.0.1", accepted)
}

func connectPair(t *testing.T, from, to string, accepted bool) *pair {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("TCP_REPAIR needs CAP_NET_ADMIN")
	}
	l, err := net.Listen("tcp4", to+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := dialer.Dial("tcp4", l.Addr().String())
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

// A connected socket survives that its route or its address is gone for a
// while; a rebuilt one does, too.
func TestRebuildWithoutRoute(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for name, c := range map[string]struct{ gone, back []string }{
		"blackhole":    {[]string{"route", "add", "blackhole", "127.9.9.9"}, []string{"route", "del", "blackhole", "127.9.9.9"}},
		"unreachable":  {[]string{"route", "add", "unreachable", "127.9.9.9"}, []string{"route", "del", "unreachable", "127.9.9.9"}},
		"address gone": {[]string{"addr", "del", "10.8.8.8/32", "dev", "lo"}, []string{"addr", "add", "10.8.8.8/32", "dev", "lo"}},
	} {
		t.Run(name, func(t *testing.T) {
			runtime.LockOSThread() // never unlocked: the thread ends with the test
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Fatal(err)
			}
			ip(t, "link", "set", "lo", "up")
			ip(t, "addr", "add", "10.8.8.8/32", "dev", "lo")
			// Our routes shall come before those to 127.0.0.0/8.
			ip(t, "rule", "add", "pref", "1", "lookup", "main")
			ip(t, "rule", "add", "pref", "2", "lookup", "local")
			ip(t, "rule", "del", "pref", "0")
			p := connectPair(t, "10.8.8.8", "127.9.9.9", false)
			p.exchange(t, random(t, 1000))
			s, err := Dump(p.fd)
			if err != nil {
				t.Fatal(err)
			}
			plan := planFrom(t, p, s)
			late := random(t, 5000)
			plan.Unsent = late
			ip(t, c.gone...)
			rebuild(t, p, plan, false)
			for _, o := range []struct{ level, option int }{
				{unix.IPPROTO_IP, unix.IP_TRANSPARENT}, {unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX}} {
				if v, err := unix.GetsockoptInt(p.fd, o.level, o.option); err != nil || v != 0 {
					t.Errorf("option %d/%d is %d, %v", o.level, o.option, v, err)
				}
			}
			time.Sleep(50 * time.Millisecond)
			ip(t, c.back...)
			if err := receive(p.peer, late); err != nil {
				t.Fatal(err)
			}
			p.exchange(t, random(t, 3000))
		})
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}
