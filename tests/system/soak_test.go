// SPDX-License-Identifier: Apache-2.0

package system

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// soak is one way to make the life of switches hard.
type soak struct {
	name  string
	args  []string // of streams
	hogs  int      // programs that only use the CPU
	stops bool     // SIGSTOP and SIGCONT at random
}

var soaks = []soak{
	{name: "epoll", args: []string{"--rate", "200000", "--piece", "16384"}},
	{name: "threads", args: []string{"--mixed", "--rate", "200000", "--piece", "16384"}, stops: true},
	{name: "hogs", args: []string{"--mixed", "--rate", "100000", "--piece", "16384"}, hogs: 3, stops: true},
}

// Fifty connections, streams both ways, every byte checked, both ends under
// eTran, switched at random on both hosts for as long as they live.
func TestSoak(t *testing.T) {
	seconds, wanted := span(6, 90), uint64(span(90, 3500)) // 10,000 in all
	for _, s := range soaks {
		t.Run(s.name, func(t *testing.T) {
			tb := testbed.ForTest(t, testbed.Options{})
			report(t, tb, s.run(t, tb, seconds), wanted)
		})
	}
}

func (s *soak) run(t *testing.T, tb *testbed.Testbed, seconds int) (client streamed) {
	t.Helper()
	for range s.hogs {
		start(t, tb.A, testbed.Command{Args: []string{"sh", "-c", "while :; do :; done"}})
	}
	streams := startSoaking(t, tb, seconds, s.args...)
	endSwitching := startSwitching(t, tb)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); s.stopAtRandom(stop, streams.client, streams.server) }()
	client, _ = streams.finish(t)
	close(stop)
	<-done
	endSwitching()
	return client
}

func startSoaking(t *testing.T, tb *testbed.Testbed, seconds int, args ...string) *streams {
	t.Helper()
	return startStreams(t, tb, streamEnds{client: true, server: true, unpinned: true},
		append([]string{"--connections", "50", "--timeout", "30", "--seconds", strconv.Itoa(seconds)}, args...)...)
}

// stopAtRandom stops one of the programs now and then for up to 200 ms.
func (s *soak) stopAtRandom(stop <-chan struct{}, programs ...*testbed.Process) {
	for s.stops {
		p := programs[rand.IntN(len(programs))]
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rand.IntN(1000)) * time.Millisecond):
		}
		// Both fail only when the program has ended.
		_ = p.Signal(syscall.SIGSTOP)
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		_ = p.Signal(syscall.SIGCONT)
	}
}

// What a switch may keep a connection waiting: 99 of a hundred, and all.
const (
	stallP99 = 5 * time.Millisecond
	stallMax = time.Second
)

// How late the pieces of a connection come that were due just when it was
// switched, as the programs see it: fifty connections, one switched at a time,
// on both hosts in turn. Whatever else the machine does then counts, too; how
// much that is, the connections that were not switched tell.
func TestStallOfASwitch(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	s := startSoaking(t, tb, span(8, 90), "--rate", "50000", "--piece", "1024")
	time.Sleep(2 * time.Second) // until all have been promoted
	var ups, downs []switched
	for n := 0; s.running(); n++ {
		conn, ok := fastConnection(t, []*testbed.Host{tb.A, tb.B}[n%2])
		if !ok {
			continue
		}
		if down, up, ok := conn.thereAndBack(t); ok {
			downs, ups = append(downs, down), append(ups, up)
		}
	}
	client, server := s.finish(t)
	report(t, tb, client, uint64(span(60, 1000)))
	late := slices.Concat(client.Late, server.Late)
	for _, kind := range []struct {
		name     string
		switches []switched
	}{{"demotion", downs}, {"promotion", ups}} {
		p50, p99, most := stalls(kind.switches, late)
		_, noiseP99, noiseMost := stalls(elsewhere(kind.switches), late)
		t.Logf("stall of a %s, of %d: p50 %v p99 %v max %v; of other connections at those times: p99 %v max %v",
			kind.name, len(kind.switches), p50, p99, most, noiseP99, noiseMost)
		if long() > 0 && (p99 > stallP99 || most > stallMax) {
			t.Errorf("a %s keeps its connection waiting for longer than p99 %v, max %v", kind.name, stallP99, stallMax)
		}
	}
}

// switched is when one connection was switched.
type switched struct {
	port int   // of the client
	from int64 // µs, CLOCK_MONOTONIC
}

// stallWindow is how long after the request a switch, and what it makes late,
// may begin.
const stallWindow = 15 * time.Millisecond

type connection struct {
	host *testbed.Host
	id   string
	port int
}

// fastConnection picks one of a host at random.
func fastConnection(t *testing.T, h *testbed.Host) (c connection, ok bool) {
	t.Helper()
	list, err := h.Admin().SS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range rand.Perm(len(list.Conns)) {
		conn := list.Conns[i]
		if conn.Path != adminapi.PathFast {
			continue
		}
		address := conn.Local // of the client
		if strings.HasPrefix(address, testbed.WireB) {
			address = conn.Remote
		}
		client, err := netip.ParseAddrPort(address)
		if err != nil {
			t.Fatal(err)
		}
		return connection{h, conn.ID, int(client.Port())}, true
	}
	return c, false
}

// thereAndBack demotes a connection and has it promoted again.
func (c connection) thereAndBack(t *testing.T) (down, up switched, ok bool) {
	t.Helper()
	pause := func() { time.Sleep(stallWindow + time.Duration(rand.IntN(10_000))*time.Microsecond) }
	pause() // the list of connections has cost time
	down = switched{c.port, monotonic(t)}
	result, err := c.host.Admin().Demote(t.Context(), adminapi.SwitchRequest{Conn: c.id})
	if err != nil || result.Switched != 1 {
		return down, up, false // it has just ended
	}
	pause()
	up = switched{c.port, monotonic(t)}
	_, err = c.host.Admin().Promote(t.Context(), adminapi.SwitchRequest{All: true})
	pause()
	return down, up, err == nil
}

func monotonic(t *testing.T) int64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano() / 1000
}

// elsewhere gives each switch another's connection.
func elsewhere(switches []switched) []switched {
	others := slices.Clone(switches)
	for i := range others {
		others[i].port = switches[(i+len(switches)/2)%len(switches)].port
	}
	return others
}

// stalls says how late a piece came that was due when its connection was switched.
func stalls(switches []switched, late []latePiece) (p50, p99, most time.Duration) {
	by := make([]time.Duration, len(switches))
	for i, s := range switches {
		end := s.from + stallWindow.Microseconds()
		for _, l := range late {
			if l.Port == s.port && l.At >= s.from && l.At-l.By <= end {
				by[i] = max(by[i], time.Duration(l.By)*time.Microsecond)
			}
		}
	}
	if len(by) == 0 {
		return 0, 0, 0
	}
	slices.Sort(by)
	return by[len(by)/2], by[len(by)*99/100], by[len(by)-1]
}
