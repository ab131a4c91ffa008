// SPDX-License-Identifier: Apache-2.0

package system

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
	"github.com/etran-go/etran/tests/middlebox"
)

// faults are what a bad wire does, each alone and all at once.
var faults = []struct {
	name string
	middlebox.Faults
}{
	{"loss", middlebox.Faults{Drop: 10_000}},
	{"reordering", middlebox.Faults{Reorder: 50_000, ReorderDelay: time.Millisecond}},
	{"duplication", middlebox.Faults{Duplicate: 50_000}},
	{"corruption", middlebox.Faults{Corrupt: 10_000}},
	{"all", middlebox.Faults{Drop: 10_000, Reorder: 50_000, ReorderDelay: time.Millisecond,
		Duplicate: 50_000, Corrupt: 10_000}},
}

// faultTime is how long each fault lasts at least, and what decides about it.
func faultTime() (seconds int, seed uint64) {
	seconds, seed = span(1, 20), 1
	if long() > 0 {
		seed = uint64(time.Now().UnixNano())
	}
	return seconds, seed
}

// wire is what happened on the way between the hosts, and at their doors.
type wire struct {
	counts middlebox.Counts
	stats  [2]*adminapi.Stats
	// Segments and datagrams whose checksum the kernels found wrong.
	kernelChecksum [2]uint64
}

func observe(t *testing.T, tb *testbed.Testbed) wire {
	t.Helper()
	var w wire
	for _, d := range []middlebox.Direction{middlebox.AToB, middlebox.BToA} {
		c, err := tb.Middlebox().Counts(d)
		if err != nil {
			t.Fatal(err)
		}
		w.counts = w.counts.Plus(c)
	}
	for i, h := range []*testbed.Host{tb.A, tb.B} {
		w.stats[i] = stats(t, h)
		w.kernelChecksum[i] = kernelCounter(t, h, "snmp", "Tcp", "InCsumErrors") +
			kernelCounter(t, h, "netstat", "IpExt", "InCsumErrors")
	}
	return w
}

// kernelCounter reads a counter of a host's kernel, as nstat does.
func kernelCounter(t *testing.T, h *testbed.Host, file, protocol, name string) uint64 {
	t.Helper()
	var text []byte
	err := h.Do(func() (err error) { text, err = os.ReadFile("/proc/thread-self/net/" + file); return err })
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch {
		case fields[0] != protocol+":":
		case names == nil:
			names = fields
		default:
			value, err := strconv.ParseUint(fields[slices.Index(names, name)], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("no %s of %s in /proc/net/%s", name, protocol, file)
	return 0
}

// check makes sure that what should have gone wrong did, and was noticed.
func (w wire) check(t *testing.T, f middlebox.Faults, before wire, etran [2]bool) {
	t.Helper()
	c := w.counts.Minus(before.counts)
	t.Logf("wire: %+v", c)
	for _, fault := range []struct {
		name   string
		chance uint32
		count  uint64
	}{{"drop", f.Drop, c.Dropped}, {"duplicate", f.Duplicate, c.Duplicated},
		{"corrupt", f.Corrupt, c.Corrupted}, {"reorder", f.Reorder, c.Reordered}} {
		if expected := c.Segments * uint64(fault.chance) / 1e6; fault.count < expected/2 || fault.chance > 0 && fault.count == 0 {
			t.Errorf("%s: happened to %d of %d segments, want about %d", fault.name, fault.count, c.Segments, expected)
		}
	}
	var caught uint64
	for i, host := range []string{"A", "B"} {
		now, old := w.stats[i], before.stats[i]
		dropped := now.Drops["checksum"] - old.Drops["checksum"]
		inKernel := w.kernelChecksum[i] - before.kernelChecksum[i]
		caught += dropped + inKernel
		t.Logf("host %s: wrong checksums: %d on the fast path, %d in the kernel; %d retransmissions, %d promotions, demotions %v",
			host, dropped, inKernel, now.Retransmissions-old.Retransmissions,
			now.Promotions-old.Promotions, difference(now.Demotions, old.Demotions))
		if etran[i] && f.Corrupt > 0 && dropped == 0 {
			t.Errorf("host %s: no wrong checksum was noticed on the fast path", host)
		}
	}
	// What was changed in the lengths or the protocol is lost before a
	// checksum is looked at.
	if caught < c.Corrupted*8/10 {
		t.Errorf("%d segments were corrupted, but only %d noticed", c.Corrupted, caught)
	}
}

// Streams in both directions on 50 connections over a bad wire, with each end
// on either path and random switches. They must finish, with every byte right.
func TestStreamsUnderFaults(t *testing.T) {
	longOnly(t)
	seconds, seed := faultTime()
	tb := testbed.ForTest(t, testbed.Options{Middlebox: true})
	combinations(t, func(t *testing.T, client, server bool) {
		for _, f := range faults {
			t.Run(f.name, func(t *testing.T) {
				f.Seed = seed
				before := setFaults(t, tb, f.Faults)
				streamsUnderFaults(t, tb, seconds, seed, client, server)
				observe(t, tb).check(t, f.Faults, before, [2]bool{client, server})
			})
		}
	})
}

// setFaults makes the wire bad until the test ends.
func setFaults(t *testing.T, tb *testbed.Testbed, f middlebox.Faults) wire {
	t.Helper()
	before := observe(t, tb)
	if err := tb.SetFaults(f); err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d, faults %+v", f.Seed, f)
	t.Cleanup(func() {
		if err := tb.SetFaults(middlebox.Faults{}); err != nil {
			t.Error(err)
		}
	})
	return before
}

// What a bad wire leaves of the throughput, as far as two busy cores tell: the
// combinations see the same faults. Nothing is switched on purpose.
func TestGoodputUnderFaults(t *testing.T) {
	if long() == 0 {
		t.Skipf("a measurement; set %s", testbed.LongEnv)
	}
	seconds, _ := faultTime()
	tb := testbed.ForTest(t, testbed.Options{Middlebox: true})
	combinations(t, func(t *testing.T, client, server bool) {
		for _, f := range faults {
			t.Run(f.name, func(t *testing.T) {
				f.Seed = 1
				before := setFaults(t, tb, f.Faults)
				s := startStreams(t, tb, streamEnds{client: client, server: server},
					"--connections", "8", "--seconds", fmt.Sprint(seconds))
				one, other := s.finish(t)
				t.Logf("%.0f MB/s each way", float64(one.Received+other.Received)/2/float64(seconds)/1e6)
				observe(t, tb).check(t, f.Faults, before, [2]bool{client, server})
			})
		}
	})
}

// longestGap is what no connection may wait for a byte: kernel TCP itself waits
// for seconds when its retransmissions are lost, too.
const longestGap = 8 * time.Second

func streamsUnderFaults(t *testing.T, tb *testbed.Testbed, seconds int, seed uint64, client, server bool) {
	t.Helper()
	a, b := stats(t, tb.A), stats(t, tb.B)
	s := startStreams(t, tb, streamEnds{client: client, server: server}, "--connections", "50",
		"--rate", "300000", "--seed", fmt.Sprint(seed))
	stop := startSwitching(t, tb)
	time.Sleep(time.Duration(seconds) * time.Second)
	enoughForFaults(t, tb.A, client, a)
	enoughForFaults(t, tb.B, server, b)
	s.stop()
	one, other := s.finish(t)
	stop()
	for i, end := range []streamed{one, other} {
		t.Logf("%s: %d MB; longest gap per connection: p50 %.0f p99 %.0f max %.0f ms", []string{"client", "server"}[i],
			end.Received>>20, end.StallUs.P50/1e3, end.StallUs.P99/1e3, end.StallUs.Max/1e3)
		if gap := time.Duration(end.StallUs.Max) * time.Microsecond; gap > longestGap {
			t.Errorf("a connection waited for %v", gap)
		}
	}
	sharesUnderFaults(t, tb, [2]bool{client, server}, [2]*adminapi.Stats{a, b})
}

// enoughForFaults waits until a host has moved so much that each fault has
// happened often, on the path that it has. A busy machine needs its time.
func enoughForFaults(t *testing.T, h *testbed.Host, etran bool, before *adminapi.Stats) {
	t.Helper()
	if !etran {
		return // the other end, or the wire's counts, tell
	}
	defer explain(t, h)
	await(t, "octets on the fast path of host "+h.Name, func() bool { return fast(t, h, before) > 5<<20 })
}

// sharesUnderFaults is checkPath for connections that are switched all the time.
func sharesUnderFaults(t *testing.T, tb *testbed.Testbed, etran [2]bool, before [2]*adminapi.Stats) {
	t.Helper()
	for i, h := range []*testbed.Host{tb.A, tb.B} {
		moved, rest := fast(t, h, before[i]), kernel(t, h, before[i])
		if etran[i] {
			t.Logf("host %s: %.1f %% of %d MB on the fast path", h.Name, 100*float64(moved)/float64(moved+rest), (moved+rest)>>20)
		}
		if etran[i] != (moved > 0) {
			t.Errorf("host %s moved %d bytes on the fast path", h.Name, moved)
		}
	}
}

// All that is in flight is lost and the connection is demoted. The kernel must
// not wait for the second or three that TCP waits without a round-trip time,
// and must send segments of the connection's size.
func TestDemotionAfterLoss(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{Middlebox: true})
	for range 3 {
		s := startStreams(t, tb, streamEnds{client: true}, "--connections", "1", "--seconds", "2", "--rate", "3000000")
		time.Sleep(time.Second)
		before := stats(t, tb.A)
		// What the kernel remembers of other connections must not help it.
		if err := tb.A.Run(t.Context(), testbed.Command{Args: []string{"ip", "tcp_metrics", "flush"}}); err != nil {
			t.Fatal(err)
		}
		lost := middlebox.Faults{Drop: 1_000_000}
		if err := tb.Middlebox().Set(middlebox.AToB, lost); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // the first time-out comes after 200
		if err := tb.Middlebox().Set(middlebox.AToB, middlebox.Faults{}); err != nil {
			t.Fatal(err)
		}
		if _, err := tb.A.Admin().Demote(t.Context(), adminapi.SwitchRequest{All: true}); err != nil {
			t.Fatal(err)
		}
		socket := awaitRTT(t, tb.A)
		if stats(t, tb.A).Demotions["request"] == before.Demotions["request"] {
			t.Fatal("nothing was demoted")
		}
		if !strings.Contains(socket, " mss:1448 ") {
			t.Errorf("kernel TCP sends segments of another size: %s", socket)
		}
		_, server := s.finish(t)
		t.Logf("longest gap %.0f ms", server.StallUs.Max/1e3)
		if server.StallUs.Max > 900e3 {
			t.Errorf("the server waited for %.0f ms", server.StallUs.Max/1e3)
		}
	}
}

// awaitRTT waits, not long, until the kernel has a round-trip time of the
// stream, and returns what ss says of it.
func awaitRTT(t *testing.T, h *testbed.Host) string {
	t.Helper()
	var out []byte
	for range 20 {
		var err error
		out, err = h.Output(t.Context(), testbed.Command{Args: []string{"ss", "-tinH", "dport", "=", ":7000"}})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(out), " rtt:") {
			return string(out)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("kernel TCP has no round-trip time: %s", out)
	return string(out)
}

// Redis over a bad wire, with each end on either path and random switches.
func TestRedisUnderFaults(t *testing.T) {
	longOnly(t)
	_, seed := faultTime()
	tb := testbed.ForTest(t, testbed.Options{Middlebox: true})
	f := faults[len(faults)-1] // all
	f.Seed = seed
	combinations(t, func(t *testing.T, client, server bool) {
		startRedis(t, tb, server)
		before := setFaults(t, tb, f.Faults)
		stop := startSwitching(t, tb)
		// Values of some segments: with large ones there are few commands. Not
		// by time: making connections takes seconds when a SYN is lost.
		verify(t, tb, testbed.Command{Etran: client}, "50", "--max-value", "20000", "--ops", strconv.Itoa(span(8000, 80000)))
		stop()
		etran := [2]bool{client, server}
		now := observe(t, tb)
		now.check(t, f.Faults, before, etran)
		sharesUnderFaults(t, tb, etran, before.stats)
	})
}
