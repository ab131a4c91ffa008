// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// A program is a server and what its users do with it.
type program struct {
	name string
	// serve starts the server on host B, use runs the clients on host A and
	// looks at what they got.
	serve, use func(r *run)
	// client and server say what becomes of the connections of either end.
	client, server path
	// long programs only run with $ETRAN_LONG, and once ones are not used again.
	long, once bool
}

// uses is how often a program is used again until it has its share.
const uses = 3

// A path is what is expected of an end under eTran.
type path struct {
	// share is the least part of the payload on the fast path.
	share float64
	// reason is one that the daemon gives for connections on the kernel's path.
	reason string
	// never says that no connection gets as far as the daemon.
	never bool
}

// fast is the path of programs that only do what the fast path does, bulk that
// of those that send without end: a connection with more in the kernel's send
// queue than the fast path's buffer has room for must wait for its moment.
var (
	fast = path{share: 0.5}
	bulk = path{share: 0.2}
)

// programs are all of them, in the order in which they run.
var programs = slices.Concat(webServers, languages, tools, databases, redises)

// TestPrograms runs each program with the server, the client, and both under
// eTran.
func TestPrograms(t *testing.T) {
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			if p.long && testbed.Long() == 0 {
				t.Skipf("only with %s: make soak", testbed.LongEnv)
			}
			tb := testbed.ForTest(t, testbed.Options{})
			dir := t.TempDir()
			// For servers that give up being root.
			for _, d := range []string{dir, filepath.Dir(dir)} {
				if err := os.Chmod(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, ends := range []struct{ client, server bool }{{false, true}, {true, false}, {true, true}} {
				t.Run(fmt.Sprintf("%s-%s", word(ends.client), word(ends.server)), func(t *testing.T) {
					r := &run{T: t, tb: tb, dir: dir, client: ends.client, server: ends.server}
					p.test(r)
				})
			}
		})
	}
}

// word names an end's path.
func word(etran bool) string {
	if etran {
		return "etran"
	}
	return "kernel"
}

// test runs a program once.
func (p program) test(r *run) {
	r.awaitNobody(r.tb.A)
	r.awaitNobody(r.tb.B)
	a, b := r.stats(r.tb.A), r.stats(r.tb.B)
	r.Cleanup(func() { r.explain(r.tb.A); r.explain(r.tb.B) })
	p.serve(r)
	p.use(r)
	// On a busy machine the daemon may come to a program too late.
	for range uses {
		if p.once || p.client.reached(r, r.tb.A, a) && p.server.reached(r, r.tb.B, b) {
			break
		}
		p.use(r)
	}
	p.client.check(r, r.tb.A, r.client, a)
	p.server.check(r, r.tb.B, r.server, b)
}

// awaitNobody waits for the end of the last run's programs: the daemon may count
// one twice while it ends.
func (r *run) awaitNobody(h *testbed.Host) {
	r.Helper()
	admin := h.Admin()
	defer admin.Close()
	r.await("the last programs' end on host "+h.Name, func() bool {
		s, err := admin.Status(r.Context())
		if err != nil {
			r.Fatal(err)
		}
		return len(s.Apps) == 0
	})
}

// check proves by the daemon's counters that a host's programs were where they should.
func (p path) check(r *run, h *testbed.Host, etran bool, before *adminapi.Stats) {
	r.Helper()
	now := r.stats(h)
	moved, kernel := octets(now, before)
	if !etran {
		if moved+kernel != 0 {
			r.Errorf("host %s moved %d octets without eTran", h.Name, moved+kernel)
		}
		return
	}
	why := reasons(now, before)
	r.Logf("host %s: %.1f %% of %d KB on the fast path, %d promotions, reasons %v",
		h.Name, 100*shareOf(moved, kernel), (moved+kernel)>>10, now.Promotions-before.Promotions, why)
	if shareOf(moved, kernel) < p.share {
		r.Errorf("host %s moved only %d of %d octets on the fast path", h.Name, moved, moved+kernel)
	}
	if p.reason != "" && why[p.reason] == 0 {
		r.Errorf("host %s: no connection was on the kernel's path because of %q: %v", h.Name, p.reason, why)
	}
	if p.never && moved != 0 {
		r.Errorf("host %s moved %d octets on the fast path", h.Name, moved)
	}
}

// reached says whether a host's programs under eTran have their share.
func (p path) reached(r *run, h *testbed.Host, before *adminapi.Stats) bool {
	return !r.etran(h) || shareOf(octets(r.stats(h), before)) >= p.share
}

// octets are what programs under eTran moved on both paths since before.
func octets(now, before *adminapi.Stats) (fast, kernel uint64) {
	return now.FastBytesIn + now.FastBytesOut - before.FastBytesIn - before.FastBytesOut,
		now.KernelBytesIn + now.KernelBytesOut - before.KernelBytesIn - before.KernelBytesOut
}

// shareOf is the part on the fast path, 0 if nothing was moved.
func shareOf(fast, kernel uint64) float64 {
	return float64(fast) / max(1, float64(fast+kernel))
}

// reasons is why connections were not promoted, or demoted, since before.
func reasons(now, before *adminapi.Stats) map[string]uint64 {
	sum := map[string]uint64{}
	for _, m := range []map[string]uint64{now.Demotions, now.PromotionsRefused, now.PromotionsAborted} {
		for reason, n := range m {
			sum[reason] += n
		}
	}
	for _, m := range []map[string]uint64{before.Demotions, before.PromotionsRefused, before.PromotionsAborted} {
		for reason, n := range m {
			if sum[reason] -= n; sum[reason] == 0 {
				delete(sum, reason)
			}
		}
	}
	return sum
}

func (r *run) stats(h *testbed.Host) *adminapi.Stats {
	r.Helper()
	admin := h.Admin()
	defer admin.Close()
	s, err := admin.Stats(context.Background())
	if err != nil {
		r.Fatalf("statistics of host %s: %v", h.Name, err)
	}
	return s
}

// explain logs what a daemon knows if the run has failed.
func (r *run) explain(h *testbed.Host) {
	if !r.Failed() {
		return
	}
	if ss, err := h.Admin().SS(context.Background()); err == nil {
		for _, c := range ss.Conns {
			r.Logf("host %s: %+v", h.Name, c)
		}
	}
	text, err := os.ReadFile(h.LogFile())
	r.Logf("etrand on host %s: %s %v", h.Name, text[max(0, len(text)-4000):], err)
}
