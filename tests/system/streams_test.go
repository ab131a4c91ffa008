// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// streamed is what tests/progs/streams.c prints.
type streamed struct {
	Sent       uint64 `json:"sent"`
	Received   uint64 `json:"received"`
	Mismatches uint64 `json:"mismatches"`
	Errors     uint64 `json:"errors"`
	StallUs    struct {
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
		Max float64 `json:"max"`
	} `json:"stall_us"`
	Late latePieces `json:"late"`
}

type latePieces []latePiece

func (l latePieces) String() string { return fmt.Sprintf("%d late pieces", len(l)) }

// latePiece came later than the rate has it come.
type latePiece struct {
	Port int   `json:"port"`  // of the client
	At   int64 `json:"at_us"` // CLOCK_MONOTONIC
	By   int64 `json:"by_us"`
}

func (s *streamed) check(t *testing.T, end string) {
	t.Helper()
	if s.Errors != 0 || s.Mismatches != 0 || s.Received == 0 {
		t.Errorf("%s: %+v", end, *s)
	}
}

// streams are a server on host B and a client on host A that send each other
// streams and check every byte.
type streams struct {
	client, server *testbed.Process
	out            [2]bytes.Buffer // of client and server
}

// streamEnds are what is special about the two programs.
type streamEnds struct {
	client, server bool // under eTran
	port           int  // 0: 7000
	uid            uint32
	unpinned       bool // on any core
}

// startStreams starts them, with tests/progs/streams.c's options. They go on
// until --seconds or stop.
func startStreams(t *testing.T, tb *testbed.Testbed, ends streamEnds, options ...string) *streams {
	t.Helper()
	port := cmp.Or(ends.port, 7000)
	args := append([]string{program(t, "streams"), "--port", strconv.Itoa(port), "--seconds", "600"}, options...)
	s := new(streams)
	client := testbed.Command{Args: append(slices.Clone(args), "--host", testbed.WireB),
		Etran: ends.client, UID: ends.uid, CPUs: []int{clientCPU}, Stdout: &s.out[0]}
	server := testbed.Command{Args: append(slices.Clone(args), "--server", "--host", "0.0.0.0"),
		Etran: ends.server, UID: ends.uid, CPUs: []int{serverCPU}, Stdout: &s.out[1]}
	if ends.unpinned {
		client.CPUs, server.CPUs = nil, nil
	}
	s.server = start(t, tb.B, server)
	awaitListening(t, tb.B, port)
	s.client = start(t, tb.A, client)
	return s
}

func (s *streams) running() bool {
	select {
	case <-s.client.Done():
		return false
	case <-s.server.Done():
		return false
	default:
		return true
	}
}

// stop has both ends send no more, before their time.
func (s *streams) stop() {
	for _, p := range []*testbed.Process{s.client, s.server} {
		_ = p.Signal(syscall.SIGUSR1) // it may have ended
	}
}

// finish waits for the end of the streams: not a byte may be lost or different.
func (s *streams) finish(t *testing.T) (client, server streamed) {
	t.Helper()
	return s.finishWithin(t, time.Duration(span(2, 10))*time.Minute)
}

func (s *streams) finishWithin(t *testing.T, limit time.Duration) (client, server streamed) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for i, end := range []struct {
		name    string
		process *testbed.Process
		printed *streamed
	}{{"client", s.client, &client}, {"server", s.server, &server}} {
		if err := end.process.Wait(ctx); err != nil {
			t.Errorf("%s: %v", end.name, err)
		}
		if err := json.Unmarshal(s.out[i].Bytes(), end.printed); err != nil {
			t.Fatalf("%s printed %q: %v", end.name, s.out[i].Bytes(), err)
		}
		end.printed.check(t, end.name)
	}
	if client.Sent != server.Received || server.Sent != client.Received {
		t.Errorf("client %+v, server %+v: the counts differ", client, server)
	}
	return client, server
}

// Streams in both directions on several connections, both ends under eTran,
// while connections are promoted and demoted at random on either host.
func TestStreamsWhileSwitching(t *testing.T) {
	for _, mode := range [][]string{nil, {"--blocking"}} {
		t.Run(strings.Join(append([]string{"streams"}, mode...), ""), func(t *testing.T) {
			tb := testbed.ForTest(t, testbed.Options{})
			s := startStreams(t, tb, streamEnds{client: true, server: true}, append(mode, "--connections", "8",
				"--seconds", strconv.Itoa(span(6, 20)), "--rate", "2000000")...)
			stop := startSwitching(t, tb)
			client, _ := s.finish(t)
			stop()
			report(t, tb, client, uint64(span(150, 500)))
		})
	}
}

// switchAtRandom promotes or demotes a random connection of a random host.
// Requests may be refused: connections begin and end as they like, and the list
// of them may be old, as making one takes longer than a switch.
func switchAtRandom(ctx context.Context, tb *testbed.Testbed, stop <-chan struct{}) {
	const asOld = 100 * time.Millisecond
	type known struct {
		*adminapi.SS
		at time.Time
	}
	var hosts [2]known
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rand.IntN(10)) * time.Millisecond):
		}
		n := rand.IntN(2)
		admin, list := []*testbed.Host{tb.A, tb.B}[n].Admin(), &hosts[n]
		if time.Since(list.at) > asOld {
			var err error
			if list.SS, err = admin.SS(ctx); err != nil {
				continue
			}
			list.at = time.Now()
		}
		if len(list.Conns) == 0 {
			continue
		}
		if conn := list.Conns[rand.IntN(len(list.Conns))]; conn.Path == adminapi.PathFast {
			_, _ = admin.Demote(ctx, adminapi.SwitchRequest{Conn: conn.ID})
		} else {
			_, _ = admin.Promote(ctx, adminapi.SwitchRequest{All: true})
		}
	}
}

// startSwitching switches random connections until stop, or the test's end.
func startSwitching(t *testing.T, tb *testbed.Testbed) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		switchAtRandom(t.Context(), tb, quit)
	}()
	stop = sync.OnceFunc(func() { close(quit); <-done })
	t.Cleanup(stop)
	return stop
}

// report says how many switches there were, which it returns, and what they cost.
func report(t *testing.T, tb *testbed.Testbed, client streamed, wanted uint64) uint64 {
	t.Helper()
	var switches, moved uint64
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		s := stats(t, h)
		switches += s.Promotions
		moved += s.FastBytesIn + s.FastBytesOut
		for _, n := range s.Demotions {
			switches += n
		}
		t.Logf("host %s: %d promotions (p50 %.0f p99 %.0f max %.0f µs), demotions %v (p50 %.0f p99 %.0f max %.0f µs), aborted %v, drops %v, %d retransmissions",
			h.Name, s.Promotions, s.PromotePause.P50Us, s.PromotePause.P99Us, s.PromotePause.MaxUs,
			s.Demotions, s.DemotePause.P50Us, s.DemotePause.P99Us, s.DemotePause.MaxUs,
			s.PromotionsAborted, s.Drops, s.Retransmissions)
	}
	t.Logf("%d switches; %d MB each way, %d MB of both hosts' payload on the fast path; longest gap per connection: p50 %.0f p99 %.0f max %.0f µs",
		switches, client.Sent>>20, moved>>20, client.StallUs.P50, client.StallUs.P99, client.StallUs.Max)
	if switches < wanted {
		t.Errorf("only %d switches, want %d", switches, wanted)
	}
	if moved == 0 {
		t.Error("nothing moved on the fast path")
	}
	return switches
}
