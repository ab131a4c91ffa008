// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
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
	// LateUs counts pieces that came late: [at least so many µs, count].
	LateUs [][2]uint64 `json:"late_us"`
}

func (s *streamed) check(t *testing.T, end string) {
	t.Helper()
	if s.Errors != 0 || s.Mismatches != 0 || s.Received == 0 {
		t.Errorf("%s: %+v", end, *s)
	}
}

// Streams in both directions on several connections, both ends under eTran,
// while connections are promoted and demoted at random on either host.
func TestStreamsWhileSwitching(t *testing.T) {
	const wanted = 500
	for _, mode := range []struct{ name, flag string }{{"epoll", ""}, {"blocking", "--blocking"}} {
		t.Run(mode.name, func(t *testing.T) {
			tb := testbed.ForTest(t, testbed.Options{})
			args := []string{program(t, "streams"), "--port", "7000", "--connections", "8",
				"--seconds", "20", "--rate", "2000000"}
			if mode.flag != "" {
				args = append(args, mode.flag)
			}
			var out bytes.Buffer
			server := start(t, tb.B, testbed.Command{Args: append(args, "--server", "--host", "0.0.0.0"),
				Etran: true, CPUs: []int{serverCPU}, Stdout: &out})
			time.Sleep(300 * time.Millisecond)
			stop := make(chan struct{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				switchAtRandom(t.Context(), tb, stop)
			}()
			var client, other streamed
			runJSON(t, tb.A, testbed.Command{Args: append(args, "--host", testbed.WireB), Etran: true,
				CPUs: []int{clientCPU}}, 90*time.Second, &client)
			close(stop)
			<-done
			if err := server.Wait(t.Context()); err != nil {
				t.Errorf("server: %v", err)
			}
			if err := json.Unmarshal(out.Bytes(), &other); err != nil {
				t.Fatalf("server printed %q: %v", out.Bytes(), err)
			}
			client.check(t, "client")
			other.check(t, "server")
			if client.Sent != other.Received || other.Sent != client.Received {
				t.Errorf("client %+v, server %+v: the counts differ", client, other)
			}
			report(t, tb, client, wanted)
		})
	}
}

// switchAtRandom promotes or demotes a random connection of a random host.
// Requests may be refused: connections begin and end as they like.
func switchAtRandom(ctx context.Context, tb *testbed.Testbed, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rand.IntN(10)) * time.Millisecond):
		}
		admin := tb.A.Admin()
		if rand.IntN(2) == 0 {
			admin = tb.B.Admin()
		}
		list, err := admin.SS(ctx)
		if err != nil || len(list.Conns) == 0 {
			continue
		}
		if conn := list.Conns[rand.IntN(len(list.Conns))]; conn.Path == adminapi.PathFast {
			_, _ = admin.Demote(ctx, adminapi.SwitchRequest{Conn: conn.ID})
		} else {
			_, _ = admin.Promote(ctx, adminapi.SwitchRequest{All: true})
		}
	}
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
