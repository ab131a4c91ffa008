// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bytes"
	"context"
	"encoding/json"
	"strconv"
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// A pair of programs, a server on host B and a client on host A, that send each
// other streams and check every byte.
type streamPair struct {
	server, client *testbed.Process
	out            [2]bytes.Buffer // of server and client
}

// uids are users who share host B.
var uids = []uint32{65534, 1000, 0}

// startPair starts pair number i.
func startPair(t *testing.T, tb *testbed.Testbed, i int, etran bool, args ...string) *streamPair {
	t.Helper()
	args = append([]string{program(t, "streams"), "--port", strconv.Itoa(7000 + i),
		"--connections", "4", "--rate", "1000000"}, args...)
	p := &streamPair{}
	p.server = start(t, tb.B, testbed.Command{Args: append(args, "--server", "--host", "0.0.0.0"),
		Etran: true, UID: uids[i%len(uids)], CPUs: []int{serverCPU}, Stdout: &p.out[0]})
	time.Sleep(300 * time.Millisecond)
	p.client = start(t, tb.A, testbed.Command{Args: append(args, "--host", testbed.WireB),
		Etran: etran, UID: uids[i%len(uids)], CPUs: []int{clientCPU}, Stdout: &p.out[1]})
	return p
}

// check waits for both programs and compares what they sent and received.
func (p *streamPair) check(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var ends [2]streamed
	for i, process := range []*testbed.Process{p.server, p.client} {
		if err := process.Wait(ctx); err != nil {
			t.Errorf("%s: %v", [2]string{"server", "client"}[i], err)
		}
		if err := json.Unmarshal(p.out[i].Bytes(), &ends[i]); err != nil {
			t.Fatalf("printed %q: %v", p.out[i].Bytes(), err)
		}
		ends[i].check(t, [2]string{"server", "client"}[i])
	}
	if ends[0].Sent != ends[1].Received || ends[1].Sent != ends[0].Received {
		t.Errorf("server %+v, client %+v: the counts differ", ends[0], ends[1])
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

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: did not happen", what)
		}
	}
}

// awaitFast waits until every process has received n more octets on the fast path.
func awaitFast(t *testing.T, h *testbed.Host, n uint64, processes ...*testbed.Process) {
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
				var pairs []*streamPair
				for i := range uids {
					pairs = append(pairs, startPair(t, tb, i, client, "--seconds", "6"))
				}
				hosts := []*testbed.Host{tb.B}
				awaitFast(t, tb.B, 1<<20, pairs[0].server, pairs[1].server, pairs[2].server)
				if client {
					hosts = append(hosts, tb.A)
					awaitFast(t, tb.A, 1<<20, pairs[0].client, pairs[1].client, pairs[2].client)
				}
				for _, h := range hosts {
					r := rings(t, h)
					if d, s := countRings(r, adminapi.RingsDirect), countRings(r, adminapi.RingsShared); d != c.direct || s != 3-c.direct {
						t.Errorf("host %s: rings %v", h.Name, r)
					}
				}
				for _, p := range pairs {
					p.check(t)
				}
				report(t, tb, streamed{}, 3)
			})
		}
	}
}
