// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// uids are users who share host B.
var uids = []uint32{65534, 1000, 0}

// startPair starts streams number i, of one of the users. The server is under
// eTran.
func startPair(t *testing.T, tb *testbed.Testbed, i int, client bool, options ...string) *streams {
	t.Helper()
	return startStreams(t, tb, streamEnds{client: client, server: true, port: 7000 + i, uid: uids[i%len(uids)]},
		append([]string{"--connections", "4", "--rate", "1000000"}, options...)...)
}

// endPairs ends streams, and explains what went wrong.
func endPairs(t *testing.T, tb *testbed.Testbed, pairs ...*streams) {
	t.Helper()
	defer explain(t, tb.B)
	for _, p := range pairs {
		p.stop()
		p.finish(t)
	}
}

// rings is how each application of a host receives, by process.
func rings(t *testing.T, h *testbed.Host) map[int]string {
	t.Helper()
	s, err := h.Admin().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := map[int]string{}
	for _, a := range s.Apps {
		m[a.Pid] = a.Rings
	}
	return m
}

// fastIn is what each process of a host has received on the fast path.
func fastIn(t *testing.T, h *testbed.Host) map[int]uint64 {
	t.Helper()
	ss, err := h.Admin().SS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := map[int]uint64{}
	for _, c := range ss.Conns {
		if c.Path == adminapi.PathFast {
			m[c.Pid] += c.FastBytesIn
		}
	}
	return m
}

// awaitFastOctets waits until every process has received n more octets on the fast path.
func awaitFastOctets(t *testing.T, h *testbed.Host, n uint64, processes ...*testbed.Process) {
	t.Helper()
	before := fastIn(t, h)
	await(t, "fast path for every application", func() bool {
		now := fastIn(t, h)
		for _, p := range processes {
			if now[p.Pid()] < before[p.Pid()]+n {
				return false
			}
		}
		return true
	})
}

// countRings counts the applications that receive so.
func countRings(m map[int]string, how string) int {
	n := 0
	for _, r := range m {
		if r == how {
			n++
		}
	}
	return n
}

// Three applications of three users on one interface, all on the fast path; the
// peers are on kernel TCP or share host A's interface in the same way.
func TestThreeApplicationsShareAnInterface(t *testing.T) {
	for _, c := range []struct {
		sharing string
		direct  int
	}{{"auto", 1}, {"always", 0}} {
		for _, client := range []bool{false, true} {
			t.Run(c.sharing+"/"+path(client), func(t *testing.T) {
				tb := testbed.ForTest(t, testbed.Options{DaemonArgs: []string{"--sharing", c.sharing}})
				var pairs []*streams
				for i := range uids {
					pairs = append(pairs, startPair(t, tb, i, client))
				}
				hosts := []*testbed.Host{tb.B}
				awaitFastOctets(t, tb.B, 1<<20, pairs[0].server, pairs[1].server, pairs[2].server)
				if client {
					hosts = append(hosts, tb.A)
					awaitFastOctets(t, tb.A, 1<<20, pairs[0].client, pairs[1].client, pairs[2].client)
				}
				for _, h := range hosts {
					r := rings(t, h)
					if d, s := countRings(r, adminapi.RingsDirect), countRings(r, adminapi.RingsShared); d != c.direct || s != 3-c.direct {
						t.Errorf("host %s: rings %v", h.Name, r)
					}
				}
				endPairs(t, tb, pairs...)
				report(t, tb, streamed{}, 3)
			})
		}
	}
}

// feed keeps a connection to a bad neighbour busy: it sends without end, and
// throws away what comes back.
func feed(t *testing.T, h *testbed.Host, address string) {
	t.Helper()
	c := connect(t, h, address)
	go func() { _, _ = io.Copy(io.Discard, c) }()
	go func() {
		piece := make([]byte, 1000)
		for {
			if _, err := c.Write(piece); err != nil {
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	}()
}

// startRogue starts a bad neighbour as user 65534 on host B and waits until it
// is on the fast path.
func startRogue(t *testing.T, tb *testbed.Testbed, what string) (p *testbed.Process, out *lines) {
	t.Helper()
	out = &lines{}
	p = start(t, tb.B, testbed.Command{Args: []string{program(t, "rogue"), "7900", "2", what},
		Etran: true, UID: 65534, CPUs: []int{serverCPU}, Stdout: out})
	time.Sleep(300 * time.Millisecond)
	feed(t, tb.A, testbed.WireB+":7900")
	awaitFastOctets(t, tb.B, 10<<10, p)
	return p, out
}

// One application misbehaves, whether it has direct or shared rings; the others'
// transfers stay intact and fast.
func TestBadNeighbour(t *testing.T) {
	longOnly(t)
	announced := func(t *testing.T, p *testbed.Process, out *lines) {
		out.await(t, "\n")
	}
	signal := func(s syscall.Signal) func(*testing.T, *testbed.Process, *lines) {
		return func(t *testing.T, p *testbed.Process, _ *lines) {
			if err := syscall.Kill(p.Pid(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name, what string
		misbehave  func(*testing.T, *testbed.Process, *lines)
		drops      string // a reason that its frames are dropped for
	}{
		{"stops reading", "idle", announced, ""},
		{"floods its tap", "flood", announced, "tx_malformed"},
		{"spoils its rings", "rings", announced, "ring_broken"},
		{"stopped", "idle", signal(syscall.SIGSTOP), ""},
		{"killed", "idle", signal(syscall.SIGKILL), ""},
	} {
		for _, sharing := range []string{"auto", "always"} {
			t.Run(c.name+"/"+sharing, func(t *testing.T) {
				tb := testbed.ForTest(t, testbed.Options{DaemonArgs: []string{"--sharing", sharing}})
				rogue, out := startRogue(t, tb, c.what) // first: direct, if there is such
				var good []*streams
				for i := range 2 {
					good = append(good, startPair(t, tb, i+1, false))
				}
				awaitFastOctets(t, tb.B, 64<<10, good[0].server, good[1].server)
				before := stats(t, tb.B)
				c.misbehave(t, rogue, out)
				awaitFastOctets(t, tb.B, 1<<19, good[0].server, good[1].server)
				endPairs(t, tb, good...)
				if c.drops != "" {
					await(t, c.drops, func() bool { return stats(t, tb.B).Drops[c.drops] > before.Drops[c.drops] })
				}
				t.Logf("rogue said %q; drops %v", out.String(), stats(t, tb.B).Drops)
			})
		}
	}
}

// The application with the device's queues dies under load: one with a shared
// ring gets them, its connections' frames change their way, and nothing is lost.
func TestSharedBecomesDirect(t *testing.T) {
	for _, client := range []bool{false, true} {
		t.Run(path(client), func(t *testing.T) {
			tb := testbed.ForTest(t, testbed.Options{})
			holder, _ := startRogue(t, tb, "idle")
			if r := rings(t, tb.B)[holder.Pid()]; r != adminapi.RingsDirect {
				t.Fatalf("the first application's rings are %q", r)
			}
			heir := startPair(t, tb, 1, client, "--rate", "8000000")
			urgeFast(t, tb.B, heir.server.Pid(), 4)
			awaitFastOctets(t, tb.B, 1<<20, heir.server)
			if r := rings(t, tb.B)[heir.server.Pid()]; r != adminapi.RingsShared {
				t.Fatalf("the second application's rings are %q", r)
			}
			if err := syscall.Kill(holder.Pid(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			await(t, "queues for the second application", func() bool {
				return rings(t, tb.B)[heir.server.Pid()] == adminapi.RingsDirect
			})
			moved := stats(t, tb.B)
			awaitFastOctets(t, tb.B, 4<<20, heir.server)
			endPairs(t, tb, heir)
			now := stats(t, tb.B)
			if now.FastBytesIn-moved.FastBytesIn < 4<<20 {
				t.Errorf("fast path in: %d octets since", now.FastBytesIn-moved.FastBytesIn)
			}
			log, err := os.ReadFile(tb.B.LogFile())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(log), `msg="application has the queues"`) || !strings.Contains(string(log), "connections=4") {
				t.Errorf("no four connections moved; the daemon's log:\n%s", log)
			}
			report(t, tb, streamed{}, 4)
		})
	}
}

// echoes sends random pieces for some time and checks what comes back.
func echoes(t *testing.T, c net.Conn, seconds float64) (octets int) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Duration(seconds * float64(time.Second))); time.Now().Before(end); {
		sent, got := make([]byte, 1+rand.IntN(20000)), make([]byte, 20000)
		for i := range sent {
			sent[i] = byte(rand.Uint32())
		}
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, got[:len(sent)]); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(sent, got[:len(sent)]) {
			t.Fatalf("%d octets came back changed", len(sent))
		}
		octets += len(sent)
	}
	return octets
}

// Shared rings outlive the daemon: the pair's namespace lives as long as the
// application, the programs are pinned. The kernel's socket sleeps, so what comes
// back comes by the fast path. The next daemon adopts them: connections go on
// there, and others get there.
func TestSharedRingsOutliveTheDaemon(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{DaemonArgs: []string{"--sharing", "always"}})
	echo := start(t, tb.B, testbed.Command{Args: []string{program(t, "rogue"), "7900", "3600", "idle"},
		Etran: true, UID: 65534, CPUs: []int{serverCPU}})
	time.Sleep(300 * time.Millisecond)
	c := connect(t, tb.A, testbed.WireB+":7900")
	before := stats(t, tb.B)
	echoes(t, c, 1)
	if fast(t, tb.B, before) == 0 || rings(t, tb.B)[echo.Pid()] != adminapi.RingsShared {
		t.Fatalf("rings %v", rings(t, tb.B))
	}
	if err := tb.B.StopDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if echoes(t, c, 1) == 0 {
		t.Error("nothing came back")
	}
	if err := tb.B.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectAdopted(t, tb, echo.Pid(), adminapi.RingsShared, c)
}

// expectAdopted: the daemon of host B has adopted an echoing program with its
// rings and one fast connection, which goes on there, also after it was away.
func expectAdopted(t *testing.T, tb *testbed.Testbed, pid int, kind string, c net.Conn) {
	t.Helper()
	await(t, "the session to be resumed", func() bool { return stats(t, tb.B).Adopted.Resumed == 1 })
	got := stats(t, tb.B)
	if got.Adopted.Recovered["fast"] != 1 || len(got.Adopted.Lost) != 0 || rings(t, tb.B)[pid] != kind {
		t.Errorf("adopted %+v, rings %v", got.Adopted, rings(t, tb.B))
	}
	before := stats(t, tb.B)
	if n := echoes(t, c, 0.5); fast(t, tb.B, before) < uint64(n) {
		t.Error("the adopted connection did not go on on the fast path")
	}
	if _, err := tb.B.Admin().Demote(t.Context(), adminapi.SwitchRequest{All: true}); err != nil {
		t.Error(err)
	}
	if _, err := tb.B.Admin().Promote(t.Context(), adminapi.SwitchRequest{All: true}); err != nil {
		t.Error(err)
	}
	echoes(t, c, 0.5)
	before = stats(t, tb.B)
	if n := echoes(t, c, 0.5); fast(t, tb.B, before) < uint64(n) {
		t.Error("a new promotion does not use the adopted rings")
	}
	if now := stats(t, tb.B); now.Promotions == 0 || now.Drops["no_xsk"] != got.Drops["no_xsk"] || now.Demotions["request"] != 1 {
		t.Errorf("%d promotions, drops %v, demotions %v", now.Promotions, now.Drops, now.Demotions)
	}
}

// The daemon dies when a program has just become the queues' holder: the next
// one knows that, for the connections that there are and for new ones.
func TestQueuesTakenOverOutliveTheDaemon(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	holder := startPair(t, tb, 1, false, "--rate", "1000000")
	awaitFastOctets(t, tb.B, 1<<20, holder.server)
	echo := start(t, tb.B, testbed.Command{Args: []string{program(t, "rogue"), "7900", "3600", "idle"},
		Etran: true, UID: 65534, CPUs: []int{serverCPU}})
	time.Sleep(300 * time.Millisecond)
	c := connect(t, tb.A, testbed.WireB+":7900")
	echoes(t, c, 1)
	if r := rings(t, tb.B)[echo.Pid()]; r != adminapi.RingsShared {
		t.Fatalf("the second application's rings are %q", r)
	}
	endPairs(t, tb, holder)
	await(t, "queues for the second application", func() bool {
		return rings(t, tb.B)[echo.Pid()] == adminapi.RingsDirect
	})
	restart(t, tb.B, 0)
	expectAdopted(t, tb, echo.Pid(), adminapi.RingsDirect, c)
}
