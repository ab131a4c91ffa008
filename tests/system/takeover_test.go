// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// A program that is stopped at random moments, in the middle of send(), recv(),
// poll() and epoll_wait(), while its connections are demoted from outside: the
// daemon does it alone, and the peer is served.
func TestStoppedProgramIsDemoted(t *testing.T) {
	longOnly(t)
	stops := span(40, 160) // of each kind of program
	for _, mode := range [][]string{nil, {"--blocking"}} {
		t.Run(strings.Join(append([]string{"streams"}, mode...), ""), func(t *testing.T) {
			tb := testbed.ForTest(t, testbed.Options{})
			streams := startStreams(t, tb, streamEnds{client: true},
				append(mode, "--connections", "6", "--rate", "2000000")...)
			urgeFast(t, tb.A, streams.client.Pid(), 1)
			fds := daemonFds(t, tb.A)
			demoted := stopAtRandom(t, tb.A, streams.client, stops)
			streams.stop()
			_, server := streams.finish(t)
			s := stats(t, tb.A)
			t.Logf("%d connections demoted while stopped, %d seized, stuck %d, %d promotions, %d MB on the fast path; longest gap %.0f ms",
				demoted, s.Seized, s.Stuck, s.Promotions, (s.FastBytesIn+s.FastBytesOut)>>20, server.StallUs.Max/1e3)
			if s.Seized < uint64(stops)/2 || s.Stuck != 0 {
				t.Errorf("%d seized, %d stuck", s.Seized, s.Stuck)
			}
			awaitFds(t, tb.A, fds)
		})
	}
}

// stopAtRandom stops the program again and again, and demotes connections
// meanwhile. It returns how many the daemon says were demoted.
func stopAtRandom(t *testing.T, h *testbed.Host, p *testbed.Process, stops int) (demoted int) {
	t.Helper()
	admin := h.Admin()
	for range stops {
		urgeFast(t, h, p.Pid(), 1)
		time.Sleep(time.Duration(rand.IntN(30000)) * time.Microsecond)
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		list, err := admin.SS(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Conns {
			if c.Path != adminapi.PathFast || rand.IntN(3) == 0 {
				continue
			}
			r, err := admin.Demote(t.Context(), adminapi.SwitchRequest{Conn: c.ID})
			if err != nil {
				t.Fatal(err)
			}
			if r.Switched != 1 {
				t.Errorf("stopped program, connection %s: %+v", c.ID, r)
			}
			demoted += r.Switched
			if rand.IntN(3) != 0 {
				break // each takes a tenth of a second
			}
		}
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	return demoted
}

// daemonFds counts the descriptors of a host's daemon, without unix sockets: the
// administration's clients keep theirs for a while.
func daemonFds(t *testing.T, h *testbed.Host) int {
	t.Helper()
	s, err := h.Admin().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := fmt.Sprintf("/proc/%d/", s.Pid)
	list, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	var unixSockets []byte // an accepted one is in its client's namespace
	for _, path := range []string{dir + "net/unix", "/proc/thread-self/net/unix"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		unixSockets = append(unixSockets, text...)
	}
	n := 0
	for _, e := range list {
		target, _ := os.Readlink(dir + "fd/" + e.Name())
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		if !isSocket || !bytes.Contains(unixSockets, []byte(" "+strings.TrimSuffix(inode, "]"))) {
			n++
		}
	}
	return n
}

// awaitFds waits until the daemon has no more descriptors than before.
func awaitFds(t *testing.T, h *testbed.Host, before int) {
	t.Helper()
	now := 0
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if now = daemonFds(t, h); now <= before {
			return
		}
	}
	t.Errorf("the daemon has %d descriptors, had %d", now, before)
}

// sink is a plain kernel program on host B that checks what doomed sends.
type sink struct {
	mu       sync.Mutex
	received map[uint32]uint64
	ended    map[uint32]error // io.EOF or what the connection ended by
	wrong    int
	done     sync.WaitGroup
}

const sinkPort = 7100

// newSink listens on a port until the test ends. It takes `connections`.
func newSink(t *testing.T, h *testbed.Host, port, connections int) *sink {
	t.Helper()
	s := &sink{received: map[uint32]uint64{}, ended: map[uint32]error{}}
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", testbed.WireB, port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s.done.Add(connections)
	go func() {
		for range connections {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
		l.Close()
	}()
	return s
}

func (s *sink) serve(c net.Conn) {
	defer s.done.Done()
	defer c.Close()
	var number uint32
	if err := binary.Read(c, binary.BigEndian, &number); err != nil {
		return
	}
	buffer, at := make([]byte, 64<<10), uint64(0)
	for {
		n, err := c.Read(buffer)
		s.mu.Lock()
		for i, b := range buffer[:n] {
			if b != byte(uint32(at+uint64(i))*2654435761>>13+number) {
				s.wrong++
				break
			}
		}
		at += uint64(n)
		s.received[number] = at
		if err != nil {
			s.ended[number] = err
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// await waits for the end of all connections.
func (s *sink) await(t *testing.T, patience time.Duration) {
	t.Helper()
	all := make(chan struct{})
	go func() { s.done.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(patience):
		t.Fatalf("connections do not end: received %v, ended %v", s.received, s.ended)
	}
}

// check compares with what send() had taken, which is at least what must have
// come: the rest of a call in progress may have come, too.
func (s *sink) check(t *testing.T, taken []uint64, more uint64, end error) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wrong != 0 {
		t.Errorf("%d wrong pieces", s.wrong)
	}
	for number, want := range taken {
		got, err := s.received[uint32(number)], s.ended[uint32(number)]
		if got < want+more || got > want+more+20000 || !errors.Is(err, end) {
			t.Errorf("connection %d: %d octets of %d came, ended by %v", number, got, want+more, err)
		}
	}
}

// doomed is a running tests/progs/doomed.c.
type doomed struct {
	*testbed.Process
	ledger string
	conns  int
	out    *lines
}

// lines is what a program has printed.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) await(t *testing.T, what string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(l.String(), what); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("program printed %q, not %q", l, what)
		}
	}
}

func startDoomed(t *testing.T, h *testbed.Host, port, connections int, action string) *doomed {
	t.Helper()
	d := &doomed{ledger: filepath.Join(t.TempDir(), "ledger"), conns: connections, out: new(lines)}
	d.Process = start(t, h, testbed.Command{Args: []string{program(t, "doomed"), testbed.WireB,
		strconv.Itoa(port), strconv.Itoa(connections), d.ledger, action}, Etran: true,
		CPUs: []int{clientCPU}, Stdout: d.out})
	return d
}

// taken reads the ledger.
func (d *doomed) taken(t *testing.T) []uint64 {
	t.Helper()
	text, err := os.ReadFile(d.ledger)
	if err != nil {
		t.Fatal(err)
	}
	list := make([]uint64, d.conns)
	if _, err := binary.Decode(text, binary.NativeEndian, list); err != nil {
		t.Fatal(err)
	}
	return list
}

// Programs killed at random moments under load: all that send() had taken
// arrives, then the end of the stream, as from Linux. One of them has the
// device's queues, the others share.
func TestKilledProgramsDataArrives(t *testing.T) {
	const programs, connections = 4, 4
	rounds := span(6, 250)
	tb := testbed.ForTest(t, testbed.Options{})
	fds := daemonFds(t, tb.A)
	for round := range rounds {
		var sinks [programs]*sink
		var victims [programs]*doomed
		for i := range victims {
			sinks[i] = newSink(t, tb.B, sinkPort+i, connections)
			victims[i] = startDoomed(t, tb.A, sinkPort+i, connections, "none")
		}
		for i, d := range victims {
			urgeFast(t, tb.A, d.Pid(), 1+(round+i)%connections)
		}
		for _, d := range victims {
			time.Sleep(time.Duration(rand.IntN(20000)) * time.Microsecond)
			if err := d.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		for i, d := range victims {
			sinks[i].await(t, 20*time.Second)
			sinks[i].check(t, d.taken(t), 0, io.EOF)
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	s, kills := stats(t, tb.A), uint64(rounds*programs)
	t.Logf("%d killed, %d connections taken over, stuck %d, %d MB sent on the fast path, demotions %v",
		kills, s.Seized, s.Stuck, s.FastBytesOut>>20, s.Demotions)
	if s.Demotions["death"] < kills || s.Stuck != 0 || s.FastBytesOut == 0 {
		t.Errorf("statistics %+v", s)
	}
	awaitFds(t, tb.A, fds)
}

// A child that holds the sockets of a parent that was killed goes on with them.
func TestChildOfAKilledProgram(t *testing.T) {
	const connections, childBytes = 3, 100000
	tb := testbed.ForTest(t, testbed.Options{})
	for range span(3, 10) {
		sink, d := fastDoomed(t, tb, connections, "fork")
		if err := d.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		d.out.await(t, "done")
		taken := d.taken(t)
		if err := d.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		sink.await(t, 20*time.Second)
		sink.check(t, taken, childBytes, io.EOF)
	}
	s := stats(t, tb.A)
	t.Logf("%d seized, demotions %v", s.Seized, s.Demotions)
	if s.Demotions["death"] == 0 || s.Stuck != 0 {
		t.Errorf("statistics %+v", s)
	}
}

// fastDoomed starts a program on host A that is about to get into trouble, with
// all its connections on the fast path to the sink on host B.
func fastDoomed(t *testing.T, tb *testbed.Testbed, connections int, action string) (*sink, *doomed) {
	t.Helper()
	sink := newSink(t, tb.B, sinkPort, connections)
	d := startDoomed(t, tb.A, sinkPort, connections, action)
	urgeFast(t, tb.A, d.Pid(), connections)
	return sink, d
}

// Sockets closed by a raw system call, unseen: the peer sees the end of the
// stream soon after.
func TestClosesThatBypassTheLibrary(t *testing.T) {
	const connections = 4
	tb := testbed.ForTest(t, testbed.Options{})
	sink, d := fastDoomed(t, tb, connections, "raw")
	if err := d.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	d.out.await(t, "done")
	began := time.Now()
	sink.await(t, 5*time.Second)
	t.Logf("the peer saw the end after %v", time.Since(began))
	sink.check(t, d.taken(t), 0, io.EOF)
	if s := stats(t, tb.A); s.ClosedBehind != connections || s.Demotions["close"] != connections {
		t.Errorf("statistics %+v", s)
	}
	// The program still lives; its peer is free of it.
	list, err := tb.A.Admin().SS(t.Context())
	if err != nil || len(list.Conns) != 0 && list.Conns[0].Path == adminapi.PathFast {
		t.Errorf("connections %+v, %v", list, err)
	}
}

// `ss -K` ends a fast connection as any other: the peer gets a reset that it
// accepts, the program ECONNABORTED.
func TestDestroyedSocket(t *testing.T) {
	const connections = 2
	tb := testbed.ForTest(t, testbed.Options{})
	sink, d := fastDoomed(t, tb, connections, "none")
	list, err := tb.A.Admin().SS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Conns {
		local, remote := netip.MustParseAddrPort(c.Local), netip.MustParseAddrPort(c.Remote)
		if err := tb.A.Do(func() error {
			return netlink.SocketDestroy(net.TCPAddrFromAddrPort(local), net.TCPAddrFromAddrPort(remote))
		}); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	sink.await(t, 5*time.Second)
	t.Logf("the peer saw the end after %v", time.Since(began))
	sink.mu.Lock()
	defer sink.mu.Unlock()
	for number := range uint32(connections) {
		if err := sink.ended[number]; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("connection %d ended by %v", number, err)
		}
		d.out.await(t, fmt.Sprintf("connection %d: Software caused connection abort", number))
	}
	if sink.wrong != 0 {
		t.Error("content differs")
	}
	if s := stats(t, tb.A); s.Destroyed != connections || s.Demotions["destroyed"] != connections {
		t.Errorf("statistics %+v", s)
	}
}

// The daemon stops while programs are stopped: all connections are the
// kernel's, and soon.
func TestDaemonStopsBesideAStoppedProgram(t *testing.T) {
	const connections = 8
	tb := testbed.ForTest(t, testbed.Options{})
	sink, d := fastDoomed(t, tb, connections, "none")
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := tb.A.StopDaemon(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("the daemon stopped in %v", took)
	if took > 3*time.Second {
		t.Errorf("the daemon took %v to stop", took)
	}
	before := d.taken(t)
	if err := d.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for number, deadline := 0, time.Now().Add(10*time.Second); number < connections; time.Sleep(5 * time.Millisecond) {
		if d.taken(t)[number] > before[number]+1<<20 {
			number++
		}
		if time.Now().After(deadline) {
			t.Fatalf("connection %d stands still", number)
		}
	}
	if err := d.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	sink.await(t, 10*time.Second)
	sink.check(t, d.taken(t), 0, io.EOF)
}
