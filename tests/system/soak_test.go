// SPDX-License-Identifier: Apache-2.0

package system

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// soak is one way to make the life of switches hard.
type soak struct {
	name  string
	args  []string // of streams
	hogs  int      // programs that only use the CPU
	stops bool     // SIGSTOP and SIGCONT at random
	// stall bounds what a switch may keep a connection waiting: 99 of a
	// hundred, and all. 0: only reported.
	p99, max time.Duration
}

var soaks = []soak{
	{name: "stall", args: []string{"--rate", "200000", "--piece", "2048"},
		p99: 5 * time.Millisecond, max: time.Second},
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
			client, server := s.run(t, tb, seconds)
			switches := report(t, tb, client, wanted)
			s.checkStall(t, switches, client.LateUs, server.LateUs)
		})
	}
}

func (s *soak) run(t *testing.T, tb *testbed.Testbed, seconds int) (client, server streamed) {
	t.Helper()
	for range s.hogs {
		start(t, tb.A, testbed.Command{Args: []string{"sh", "-c", "while :; do :; done"}})
	}
	streams := startStreams(t, tb, streamEnds{client: true, server: true, unpinned: true},
		append([]string{"--connections", "50", "--timeout", "30", "--seconds", strconv.Itoa(seconds)}, s.args...)...)
	endSwitching := startSwitching(t, tb)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); s.stopAtRandom(stop, streams.client, streams.server) }()
	client, server = streams.finish(t)
	close(stop)
	<-done
	endSwitching()
	return client, server
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

// checkStall takes the latest pieces of both ends, as many as there were
// switches, for the switches' doing: whatever else made a piece late counts
// against us, too.
func (s *soak) checkStall(t *testing.T, switches uint64, ends ...[][2]uint64) {
	t.Helper()
	var all [][2]uint64
	for _, e := range ends {
		all = append(all, e...)
	}
	slices.SortFunc(all, func(a, b [2]uint64) int { return cmp.Compare(b[0], a[0]) })
	quantile := func(q float64) time.Duration {
		rank := uint64(float64(switches) * (1 - q))
		for _, bucket := range all {
			if bucket[1] > rank {
				return time.Duration(bucket[0]) * time.Microsecond
			}
			rank -= bucket[1]
		}
		return 0
	}
	p50, p99, most := quantile(.5), quantile(.99), quantile(1)
	t.Logf("stall per switch, of %d: p50 %v p99 %v max %v", switches, p50, p99, most)
	if s.p99 != 0 && p99 > s.p99 || s.max != 0 && most > s.max {
		complain := t.Errorf
		if long() == 0 {
			complain = t.Logf // a busy machine, few switches: not a proof
		}
		complain("%s", fmt.Sprintf("stalls are longer than p99 %v, max %v", s.p99, s.max))
	}
}
