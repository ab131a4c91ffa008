// SPDX-License-Identifier: Apache-2.0

package handover_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/runtime/internal/app"
	"github.com/etran-go/etran/runtime/internal/config"
	"github.com/etran-go/etran/runtime/internal/control"
	"github.com/etran-go/etran/runtime/internal/datapath"
	"github.com/etran-go/etran/runtime/internal/testnet"
)

// host is a daemon in this process, on one end of a wire.
type host struct {
	*wire
	manager *app.Manager
	runDir  string
	stop    func()
}

func newHost(t *testing.T) *host { return newHostSharing(t, config.SharingAuto) }

func newHostSharing(t *testing.T, sharing config.Sharing) *host {
	t.Helper()
	testnet.Require(t)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	h := &host{wire: newWire(t), runDir: dir}
	c := config.Default()
	c.RunDir, c.PinDir = dir, filepath.Join(dir, "pins")
	c.Interfaces = []config.Interface{{Name: "here", Sharing: sharing}}
	log := slog.New(slog.NewTextHandler(testLog{t}, nil))
	path, err := datapath.Open(&c, log)
	must(t, err)
	h.manager, err = app.NewManager(&c, path, log)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	must(t, h.manager.Watch(ctx))
	l, err := control.Listen(dir)
	must(t, err)
	go h.manager.Accept(l)
	h.stop = sync.OnceFunc(func() {
		l.Close()
		h.manager.Stop()
		cancel()
		path.Close()
		_ = unix.Unmount(c.PinDir, unix.MNT_DETACH)
	})
	t.Cleanup(h.stop)
	return h
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	defer func() { _ = recover() }() // the test may be over
	l.t.Logf("daemon: %s", bytes.TrimSpace(b))
	return len(b), nil
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// send and expect are the peer's, or ours on the kernel path.
func send(t *testing.T, c io.Writer, data []byte) {
	t.Helper()
	_, err := c.Write(data)
	must(t, err)
}

func expect(t *testing.T, c io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if peer, ok := c.(*net.TCPConn); ok {
		must(t, peer.SetReadDeadline(time.Now().Add(5*time.Second)))
	}
	if n, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read %d of %d: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("content of %d octets differs", len(want))
	}
}

// exchange moves data both ways on the kernel path.
func exchange(t *testing.T, ours *raw, peer *net.TCPConn, n int) {
	t.Helper()
	data := random(n)
	send(t, ours, data)
	expect(t, peer, data)
	send(t, peer, data)
	expect(t, ours, data)
}

// fastExchange moves data both ways on the fast path.
func fastExchange(t *testing.T, c *conn, peer *net.TCPConn, n int) {
	t.Helper()
	data := random(n)
	c.write(data)
	expect(t, peer, data)
	send(t, peer, data)
	if got := c.read(n); !bytes.Equal(got, data) {
		t.Fatalf("content of %d octets differs on the fast path", n)
	}
}

// promote observes and switches, trying again while the peer's
// acknowledgements are under way.
func promote(t *testing.T, l *library, c *conn, ours *raw, peer *net.TCPConn) {
	t.Helper()
	for range 50 {
		if p := c.observe(); p != abi.PhaseObserving {
			if p == abi.PhaseRefused && abi.PathReason(c.a.Reason) != abi.PathReasonNoHop {
				t.Fatalf("refused: %v", abi.PathReason(c.a.Reason))
			}
			c.setPhase(abi.PhaseFree)
			time.Sleep(time.Millisecond)
			continue
		}
		if l.tap < 0 {
			l.openRings()
		}
		exchange(t, ours, peer, 100)
		if c.makeFast() == abi.PhaseFast {
			return
		}
		t.Logf("aborted: %v", abi.PathReason(c.a.Reason))
		c.reinject()
	}
	t.Fatal("never promoted")
}

func TestPromoteAndDemote(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	for name, accepted := range map[string]bool{"connected": false, "accepted": true} {
		ours, peer := h.dial(t, accepted)
		exchange(t, ours, peer, 1000)
		c := l.conn(40, ours)
		for round := range 20 {
			promote(t, l, c, ours, peer)
			for range 5 {
				fastExchange(t, c, peer, 1+rand.IntN(3000))
			}
			if p := c.demote(abi.PathReasonRequest); p != abi.PhaseDemoted {
				t.Fatalf("%s, round %d: phase %d", name, round, p)
			}
			exchange(t, ours, peer, 5000)
		}
		must(t, ours.Close())
		if n, err := peer.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: peer read %d, %v after our close", name, n, err)
		}
	}
	stats, err := h.manager.Stats()
	must(t, err)
	t.Logf("promotions %d, aborted %v, demotions %v, pauses %+v %+v", stats.Promotions, stats.PromotionsAborted,
		stats.Demotions, stats.PromotePause, stats.DemotePause)
	if stats.Promotions != 40 || stats.Demotions["request"] != 40 {
		t.Errorf("stats %+v", stats)
	}
}

// What the kernel's queue had at a promotion is in the arena before the library
// does anything: it can be read there, and a demotion brings it back.
func TestUnreadOctetsGoToTheArena(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	for _, size := range []int{1, 5000, 60000} {
		for _, read := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d octets, read %v", size, read), func(t *testing.T) {
				l.t = t
				ours, peer := h.dial(t, true)
				c := l.conn(43, ours)
				promote(t, l, c, ours, peer)
				fastExchange(t, c, peer, 100)
				c.demote(abi.PathReasonRequest)
				unread := promoteUnread(t, c, peer, size)
				if read {
					if got := c.read(len(unread)); !bytes.Equal(got, unread) {
						t.Error("content differs on the fast path")
					}
					unread = nil
					fastExchange(t, c, peer, 100)
				}
				if p := c.demote(abi.PathReasonRequest); p != abi.PhaseDemoted {
					t.Fatalf("phase %d", p)
				}
				expect(t, ours, unread)
				exchange(t, ours, peer, 3000)
			})
		}
	}
}

// promoteUnread promotes a connection whose kernel queue has at least size
// octets, which it returns.
func promoteUnread(t *testing.T, c *conn, peer *net.TCPConn, size int) (unread []byte) {
	t.Helper()
	for range 50 {
		if p := c.observe(); p != abi.PhaseObserving {
			t.Fatalf("phase %d, reason %v", p, abi.PathReason(c.a.Reason))
		}
		more := random(max(size-len(unread), 1))
		send(t, peer, more)
		unread = append(unread, more...)
		for deadline := time.Now().Add(3 * time.Second); must1(t)(unix.IoctlGetInt(c.fd, unix.SIOCINQ)) < len(unread); {
			if time.Now().After(deadline) {
				t.Fatal("the octets do not come")
			}
		}
		if c.makeFast() == abi.PhaseFast {
			if n := int(c.a.Rcv.Nxt - c.a.Rcv.Read); n != len(unread) {
				t.Errorf("%d of %d octets are in the arena", n, len(unread))
			}
			return unread
		}
		t.Logf("aborted: %v", abi.PathReason(c.a.Reason))
		c.reinject()
	}
	t.Fatal("never promoted")
	return nil
}

// What is in the library's buffers at a demotion goes into the kernel socket.
func TestDemoteCarriesAllOctets(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	for _, sizes := range []struct{ unread, inFlight, unsent int }{
		{0, 0, 0}, {1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {50000, 0, 0}, {0, 30000, 0},
		{0, 0, 200000}, {60000, 20000, 100000},
	} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			l.t = t
			ours, peer := h.dial(t, false)
			exchange(t, ours, peer, 1000)
			c := l.conn(41, ours)
			promote(t, l, c, ours, peer)
			fastExchange(t, c, peer, 2000)

			unread, out := random(sizes.unread), random(sizes.inFlight+sizes.unsent)
			send(t, peer, unread)
			for deadline := time.Now().Add(3 * time.Second); c.a.Rcv.Nxt-c.a.Rcv.Read < uint32(len(unread)) && time.Now().Before(deadline); {
				c.poll()
			}
			c.queue(out)
			c.push(sizes.inFlight)
			if p := c.demote(abi.PathReasonApi); p != abi.PhaseDemoted {
				t.Fatalf("phase %d", p)
			}
			expect(t, ours, unread)
			expect(t, peer, out)
			exchange(t, ours, peer, 3000)
		})
	}
}

// A peer that sends all the time: the switches catch segments under way.
func TestSwitchesUnderTraffic(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	ours, peer := h.dial(t, true)
	c := l.conn(42, ours)
	// A stint on the fast path is short, so that there are many.
	const total, part, stintSize = 16 << 20, 16 << 10, 64 << 10
	data := random(total)
	go func() {
		for rest := data; len(rest) > 0; rest = rest[part:] {
			_, _ = peer.Write(rest[:part])
			time.Sleep(100 * time.Microsecond)
		}
	}()

	var got []byte
	buf := make([]byte, 1<<20)
	// read takes what the kernel has; it fails if for long there is nothing.
	last := time.Now()
	read := func() {
		n, _, err := unix.Recvfrom(c.fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN && time.Since(last) < 5*time.Second {
			return
		}
		must(t, err)
		got, last = append(got, buf[:n]...), time.Now()
	}
	promoted := 0
	for len(got) < total {
		if p := c.observe(); p != abi.PhaseObserving {
			t.Fatalf("phase %d, reason %v", p, abi.PathReason(c.a.Reason))
		}
		if l.tap < 0 {
			l.openRings()
		}
		for c.pub().ObsSegs == 0 && len(got) < total {
			read()
		}
		if c.makeFast() != abi.PhaseFast {
			c.reinject()
			read()
			continue
		}
		promoted++
		for stint := min(len(got)+stintSize, total); len(got) < stint; {
			c.poll()
			if time.Since(last) > 5*time.Second {
				t.Fatalf("%v stands still", c)
			}
			if n := c.a.Rcv.Nxt - c.a.Rcv.Read; n > 0 {
				got, last = append(got, c.read(int(n))...), time.Now()
			}
		}
		if p := c.demote(abi.PathReasonRequest); p != abi.PhaseDemoted {
			t.Fatalf("phase %d", p)
		}
		read()
	}
	if !bytes.Equal(got, data) {
		t.Error("content differs")
	}
	stats, err := h.manager.Stats()
	must(t, err)
	t.Logf("%d promotions, aborted %v, %d frames held, drops %v, pauses %+v %+v", promoted,
		stats.PromotionsAborted, l.stashed, stats.Drops, stats.PromotePause, stats.DemotePause)
	if promoted == 0 {
		t.Error("never promoted")
	}
}

func ifindexOf(name string) int {
	l, err := net.InterfaceByName(name)
	if err != nil {
		return -1
	}
	return l.Index
}

func TestRefusals(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	for name, c := range map[string]struct {
		spoil  func(fd int) error
		reason abi.PathReason
	}{
		"mark":     {func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 7) }, abi.PathReasonOption},
		"zerocopy": {func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1) }, abi.PathReasonOption},
		"min ttl":  {func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, 200) }, abi.PathReasonOption},
		"pacing":   {func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, 1e6) }, abi.PathReasonOption},
		"ULP":      {func(fd int) error { return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls") }, abi.PathReasonOption},
		"IP option": {func(fd int) error {
			return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x01")
		}, abi.PathReasonOption},
		"filter": {func(fd int) error {
			accept := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16}}
			return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &accept[0]})
		}, abi.PathReasonFilter},
		"receive low-water mark": {func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, 100) }, abi.PathReasonOption},
		"time stamps":            {func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1) }, abi.PathReasonOption},
		"bound to a device": {func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, ifindexOf("here"))
		}, abi.PathReasonOption},
		"transparent": {func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1) }, abi.PathReasonOption},
		"signed": {func(fd int) error {
			key := unix.TCPMD5Sig{Keylen: 3, Key: [80]byte{'k', 'e', 'y'}}
			key.Addr.Family = unix.AF_INET
			copy(key.Addr.Data[2:], []byte{10, 66, 0, 99}) // not this peer's
			return unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &key)
		}, abi.PathReasonOption},
		"in a sockmap": {func(fd int) error {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err != nil {
				return err
			}
			t.Cleanup(func() { m.Close() })
			return m.Put(uint32(0), uint32(fd))
		}, abi.PathReasonOption},
		"half closed": {func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) }, abi.PathReasonNotEstablished},
	} {
		ours, peer := h.dial(t, false)
		exchange(t, ours, peer, 100)
		s := l.conn(50, ours)
		if err := c.spoil(s.fd); err != nil {
			t.Logf("%s: not on this kernel: %v", name, err)
			continue
		}
		if p := s.observe(); p != abi.PhaseRefused || abi.PathReason(s.a.Reason) != c.reason {
			t.Errorf("%s: phase %d, reason %v, want %v", name, p, abi.PathReason(s.a.Reason), c.reason)
		}
		s.setPhase(abi.PhaseFree)
	}
}

func TestOneApplicationPerDevice(t *testing.T) {
	h := newHostSharing(t, config.SharingNever)
	first, second := newLibrary(t, h.runDir), newLibrary(t, h.runDir)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	promote(t, first, first.conn(40, ours), ours, peer)
	other, otherPeer := h.dial(t, false)
	exchange(t, other, otherPeer, 100)
	c := second.conn(40, other)
	if p := c.observe(); p != abi.PhaseRefused || abi.PathReason(c.a.Reason) != abi.PathReasonDeviceBusy {
		t.Fatalf("phase %d, reason %v", p, abi.PathReason(c.a.Reason))
	}
	found := false
	for _, conn := range h.manager.SS(app.Viewer{All: true}).Conns {
		if conn.Local == other.local {
			found = conn.Path == adminapi.PathKernel && conn.Reason == abi.PathReasonDeviceBusy.String()
		}
	}
	if !found {
		t.Errorf("ss does not say why: %+v", h.manager.SS(app.Viewer{All: true}).Conns)
	}
}

func TestCancelAndRequestsOutOfPlace(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	c := l.conn(60, ours)
	for _, wrong := range []abi.MsgType{abi.MsgTypeSwitch, abi.MsgTypeDemote, abi.MsgTypeReinject, abi.MsgTypeCancel} {
		c.tell(wrong, 0, -1)
	}
	if p := c.observe(); p != abi.PhaseObserving {
		t.Fatalf("phase %d, %v", p, abi.PathReason(c.a.Reason))
	}
	l.openRings()
	for _, wrong := range []abi.MsgType{abi.MsgTypeDemote, abi.MsgTypeReinject} {
		c.tell(wrong, 0, -1)
	}
	c.setPhase(abi.PhaseCancelReq)
	c.tell(abi.MsgTypeCancel, 0, -1)
	if p := c.await(abi.PhaseCancelReq); p != abi.PhaseFree {
		t.Fatalf("phase %d", p)
	}
	promote(t, l, c, ours, peer)
	fastExchange(t, c, peer, 500)
	c.demote(abi.PathReasonRequest)
	exchange(t, ours, peer, 500)
}

// fastConn makes a host with a program that has one connection, on the fast path.
func fastConn(t *testing.T, slot uint32) (*host, *library, *conn, *raw, *net.TCPConn) {
	t.Helper()
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	c := l.conn(slot, ours)
	promote(t, l, c, ours, peer)
	fastExchange(t, c, peer, 500)
	return h, l, c, ours, peer
}

// A library whose words make no sense loses its own octets, not the daemon.
func TestNonsenseInTheArena(t *testing.T) {
	_, _, c, ours, peer := fastConn(t, 61)
	c.a.Rcv.Nxt += 1 << 20
	c.a.Rcv.Read -= 1 << 30
	c.a.Snd.End -= 77
	if p := c.demote(abi.PathReasonRequest); p != abi.PhaseDemoted {
		t.Fatalf("phase %d", p)
	}
	exchange(t, ours, peer, 500)
	if abi.PathReason(c.a.Reason) != abi.PathReasonProtocol {
		t.Errorf("reason %v", abi.PathReason(c.a.Reason))
	}
}

// The sleeping socket's options are the program's again afterwards.
func TestSocketSleepsAndWakes(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	c := l.conn(62, ours)
	options := []struct{ level, option, set, asleep int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, 0},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 30000, 0},
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, 1},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, 1},
	}
	check := func(when string, asleep bool) {
		t.Helper()
		for _, o := range options {
			want := o.set
			if asleep {
				want = o.asleep
			}
			if v, err := unix.GetsockoptInt(c.fd, o.level, o.option); err != nil || v != want {
				t.Errorf("%s: option %d/%d is %d, %v; want %d", when, o.level, o.option, v, err, want)
			}
		}
	}
	for _, o := range options {
		must(t, unix.SetsockoptInt(c.fd, o.level, o.option, o.set))
	}
	promote(t, l, c, ours, peer)
	check("fast", true)
	if c.a.Keepalive != 1 || c.a.UserTimeout != 30000 {
		t.Errorf("arena: keepalive %d, user timeout %d", c.a.Keepalive, c.a.UserTimeout)
	}
	c.demote(abi.PathReasonRequest)
	check("demoted", false)
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != unix.ENOENT {
		t.Errorf("detach of a filter that should be gone: %v", err)
	}
	exchange(t, ours, peer, 500)
}

// The daemon stops although the program does not answer.
func TestStopDemotesWithoutTheProgram(t *testing.T) {
	h, _, c, ours, peer := fastConn(t, 63)
	lost := random(3000)
	c.write(lost[:2000])
	c.queue(lost[2000:])
	h.stop()
	expect(t, peer, lost)
	exchange(t, ours, peer, 2000)
}

// nineSegments has the peer send nine segments, which stay in the ring.
func nineSegments(t *testing.T, l *library, peer *net.TCPConn) []byte {
	t.Helper()
	data := random(9000)
	for part := data; len(part) > 0; part = part[1000:] {
		send(t, peer, part[:1000])
		time.Sleep(2 * time.Millisecond) // a segment of its own
	}
	for deadline := time.Now().Add(3 * time.Second); atomic.LoadUint32(l.rx.producer())-l.taken < 9; {
		if time.Now().After(deadline) {
			t.Fatalf("only %d frames came", atomic.LoadUint32(l.rx.producer())-l.taken)
		}
	}
	return data
}

// What the rings hold when the daemon takes over is in the kernel's queue
// afterwards.
func TestTakeoverTakesTheRings(t *testing.T) {
	h, l, c, ours, peer := fastConn(t, 66)
	data := nineSegments(t, l, peer)
	if errno := askForeign(t, h, c.fd); errno != 0 { // the program does not answer
		t.Fatal(errno)
	}
	if n := must1(t)(unix.IoctlGetInt(ours.fd, unix.SIOCINQ)); n != len(data) {
		t.Errorf("%d of %d octets are in the kernel's queue", n, len(data))
	}
	expect(t, ours, data)
	exchange(t, ours, peer, 2000)
	if stats, err := h.manager.Stats(); err != nil || stats.Seized != 1 || stats.Stuck != 0 {
		t.Errorf("statistics %+v, %v", stats, err)
	}
}

// askForeign asks, as another process, for the demotion of a socket.
func askForeign(t *testing.T, h *host, fd int) unix.Errno {
	t.Helper()
	other := library{t: t, whole: t}
	other.control = must1(t)(unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(other.control)
	must(t, unix.Connect(other.control, &unix.SockaddrUnix{Name: filepath.Join(h.runDir, control.SocketName)}))
	other.send(control.Slot(abi.MsgTypeDemoteForeign, 0, 0, abi.PathReasonFork), fd)
	var done abi.MsgDone
	other.receive(&done, abi.MsgTypeDone)
	return unix.Errno(done.Error)
}

// Nobody can take the daemon's threads by connecting again and again.
func TestSessionsAreBounded(t *testing.T) {
	h := newHost(t)
	const many = 400
	closed := 0
	for range many {
		fd := must1(t)(unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0))
		t.Cleanup(func() { unix.Close(fd) })
		must(t, unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(h.runDir, control.SocketName)}))
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 2); err == nil && n > 0 {
			closed++
		}
	}
	if closed < many/4 {
		t.Errorf("%d of %d sessions were turned away", closed, many)
	}
}

// A process that is not the owner has the owner demote.
func TestForeignDemotion(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	c := l.conn(65, ours)
	other := *l
	other.control = must1(t)(unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(other.control)
	must(t, unix.Connect(other.control, &unix.SockaddrUnix{Name: filepath.Join(h.runDir, control.SocketName)}))
	ask := func() {
		other.send(control.Slot(abi.MsgTypeDemoteForeign, 0, 0, abi.PathReasonFork), c.fd)
	}
	answer := func() int32 {
		var done abi.MsgDone
		other.receive(&done, abi.MsgTypeDone)
		return done.Error
	}
	ask()
	if errno := answer(); errno != 0 {
		t.Errorf("socket on the kernel path: %v", unix.Errno(errno))
	}
	promote(t, l, c, ours, peer)
	ask()
	var m abi.MsgSlot
	l.receive(&m, abi.MsgTypePleaseDemote)
	if m.Slot != c.slot || abi.PathReason(m.Reason) != abi.PathReasonFork {
		t.Errorf("owner is asked %+v", m)
	}
	c.demote(abi.PathReasonFork)
	if errno := answer(); errno != 0 {
		t.Errorf("demoted socket: %v", unix.Errno(errno))
	}
	promote(t, l, c, ours, peer)
	ask() // and the owner does not answer
	if errno := unix.Errno(answer()); errno != 0 {
		t.Errorf("silent owner: %v", errno)
	}
	exchange(t, ours, peer, 1000)
	if stats, err := h.manager.Stats(); err != nil || stats.Seized != 1 || stats.Stuck != 0 {
		t.Errorf("statistics %+v, %v", stats, err)
	}
}

func TestKeepaliveDemotes(t *testing.T) {
	h := newHost(t)
	l := newLibrary(t, h.runDir)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	c := l.conn(64, ours)
	must(t, unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1))
	must(t, unix.SetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1))
	promote(t, l, c, ours, peer)
	var m abi.MsgSlot
	l.receive(&m, abi.MsgTypePleaseDemote)
	if m.Slot != c.slot || m.Generation != c.a.Generation || abi.PathReason(m.Reason) != abi.PathReasonKeepalive {
		t.Errorf("%+v", m)
	}
	c.demote(abi.PathReasonKeepalive)
	exchange(t, ours, peer, 500)
}

// A program that is killed: the peer gets what it had accepted to send, then
// what Linux says to the peer of a process that died.
func TestDeathOfTheProgram(t *testing.T) {
	h := newHost(t)
	ours, peer := h.dial(t, false)
	exchange(t, ours, peer, 100)
	file := os.NewFile(uintptr(must1(t)(unix.Dup(ours.fd))), "socket")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDyingProgram$", "-test.v")
	cmd.Env = append(os.Environ(), dyingEnv+"="+h.runDir)
	cmd.ExtraFiles = []*os.File{file}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	must(t, file.Close())
	must(t, ours.Close())
	lines := make(chan string)
	go func() {
		for scan := bufio.NewScanner(out); scan.Scan(); {
			t.Logf("program: %s", scan.Text())
			lines <- scan.Text()
		}
		close(lines)
	}()
	// Its segments during OBSERVE come from us.
	for line := range lines {
		if strings.Contains(line, "say something") {
			send(t, peer, []byte("x"))
		}
		if strings.Contains(line, "queued") {
			break
		}
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	expect(t, peer, bytes.Repeat([]byte("last words "), 1000))
	if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after the death: %d octets, %v", n, err)
	}
	for deadline := time.Now().Add(3 * time.Second); len(h.manager.Status(app.Viewer{All: true}).Apps) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the application is still registered")
		}
		time.Sleep(time.Millisecond)
	}
}

const dyingEnv = "ETRAN_TEST_DYING"

// TestDyingProgram is the program of TestDeathOfTheProgram, in a process of
// its own.
func TestDyingProgram(t *testing.T) {
	runDir := os.Getenv(dyingEnv)
	if runDir == "" {
		t.Skip("runs inside TestDeathOfTheProgram")
	}
	l := newLibrary(t, runDir)
	c := l.conn(40, &raw{fd: 3})
	for {
		if p := c.observe(); p != abi.PhaseObserving {
			c.setPhase(abi.PhaseFree)
			continue
		}
		if l.tap < 0 {
			l.openRings()
		}
		fmt.Println("say something")
		for c.pub().ObsSegs == 0 {
			time.Sleep(time.Millisecond)
		}
		if c.makeFast() == abi.PhaseFast {
			break
		}
		c.reinject()
	}
	words := bytes.Repeat([]byte("last words "), 1000)
	c.queue(words)
	c.push(4000)
	fmt.Println("queued")
	time.Sleep(time.Minute)
}
