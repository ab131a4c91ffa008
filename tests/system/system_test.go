// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// The core that each end has to itself.
const (
	clientCPU = 0
	serverCPU = 1
)

// long is the value of $ETRAN_LONG: 0 if it is not set.
func long() int { return testbed.Long() }

// span is how much a test does: seconds or rounds, usually and in a long run.
func span(usual, longer int) int { return testbed.Span(usual, longer) }

// program is the path of a test program made by the build.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "build", "progs", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make first", err)
	}
	return path
}

// start runs a program until the test ends, and shows its complaints.
func start(t *testing.T, h *testbed.Host, c testbed.Command) *testbed.Process {
	t.Helper()
	var stderr bytes.Buffer
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	p, err := h.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Stop()
		if stderr.Len() > 0 {
			t.Logf("%s on host %s: %s", c.Args[0], h.Name, stderr.Bytes())
		}
	})
	return p
}

// startRedis starts a server on host B and waits until it answers.
func startRedis(t *testing.T, tb *testbed.Testbed, etran bool) *testbed.Process {
	t.Helper()
	p := start(t, tb.B, testbed.Command{
		Args: []string{"redis-server", "--port", "6379", "--save", "", "--appendonly", "no",
			"--protected-mode", "no", "--daemonize", "no", "--logfile", ""},
		Etran:  etran,
		CPUs:   []int{serverCPU},
		Stdout: t.Output(),
	})
	awaitListener(t, tb.B, "127.0.0.1:6379")
	return p
}

func awaitListener(t *testing.T, h *testbed.Host, address string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := h.Do(func() error {
			c, err := net.DialTimeout("tcp", address, time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody listens on %s of host %s: %v", address, h.Name, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// awaitListening waits for a listener without connecting to it.
func awaitListening(t *testing.T, h *testbed.Host, port int) {
	t.Helper()
	want := fmt.Sprintf(":%04X 00000000:0000 0A", port) // listens
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var text []byte
		if err := h.Do(func() (err error) { text, err = os.ReadFile("/proc/thread-self/net/tcp"); return err }); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), want) {
			return
		}
	}
	t.Fatalf("nobody listens on port %d of host %s", port, h.Name)
}

// await waits until f says true.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// fastConns are the connections that a host, or one program on it, has on the
// fast path. Pid 0 is any.
func fastConns(t *testing.T, h *testbed.Host, pid int) (fast []adminapi.Conn) {
	t.Helper()
	list, err := h.Admin().SS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Conns {
		if c.Path == adminapi.PathFast && (pid == 0 || c.Pid == pid) {
			fast = append(fast, c)
		}
	}
	return fast
}

// awaitFast waits until there are n of them, and returns them.
func awaitFast(t *testing.T, h *testbed.Host, pid, n int) (fast []adminapi.Conn) {
	t.Helper()
	defer explain(t, h)
	await(t, fmt.Sprintf("%d fast connections on host %s", n, h.Name), func() bool {
		fast = fastConns(t, h, pid)
		return len(fast) >= n
	})
	return fast
}

// urgeFast is awaitFast for connections that the library would leave on the
// kernel for a while, as it does after a demotion.
func urgeFast(t *testing.T, h *testbed.Host, pid, n int) {
	t.Helper()
	defer explain(t, h)
	await(t, fmt.Sprintf("%d fast connections on host %s", n, h.Name), func() bool {
		if len(fastConns(t, h, pid)) >= n {
			return true
		}
		urge(t, h)
		return false
	})
}

// urge asks for the promotion of all connections of a host. Some may be refused.
func urge(t *testing.T, h *testbed.Host) {
	t.Helper()
	_, _ = h.Admin().Promote(t.Context(), adminapi.SwitchRequest{All: true})
}

// explain logs what a daemon knows if the test has failed.
func explain(t *testing.T, h *testbed.Host) {
	t.Helper()
	if !t.Failed() {
		return
	}
	if ss, err := h.Admin().SS(context.Background()); err == nil {
		for _, c := range ss.Conns {
			t.Logf("%+v", c)
		}
	}
	if s, err := h.Admin().Stats(context.Background()); err == nil {
		t.Logf("%+v", *s)
	}
	text, err := os.ReadFile(h.LogFile())
	t.Logf("etrand on host %s: %s %v", h.Name, text[max(0, len(text)-20000):], err)
}

// command runs a program on a host to its end.
func command(t *testing.T, h *testbed.Host, line string) {
	t.Helper()
	run(t, h, testbed.Command{Args: strings.Fields(line)})
}

// runJSON runs a program that prints one line of JSON into out.
func runJSON(t *testing.T, h *testbed.Host, c testbed.Command, limit time.Duration, out any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	stdout, err := h.Output(ctx, c)
	if err != nil {
		t.Fatalf("%v\nstdout: %s", err, stdout)
	}
	if err := json.Unmarshal(stdout, out); err != nil {
		t.Fatalf("%s printed %q: %v", c.Args[0], stdout, err)
	}
}

func stats(t *testing.T, h *testbed.Host) *adminapi.Stats {
	t.Helper()
	admin := h.Admin()
	defer admin.Close()
	s, err := admin.Stats(t.Context())
	if err != nil {
		t.Fatalf("statistics of host %s: %v", h.Name, err)
	}
	return s
}

// fast is the payload that host h moved on the fast path since before.
func fast(t *testing.T, h *testbed.Host, before *adminapi.Stats) uint64 {
	t.Helper()
	now := stats(t, h)
	return now.FastBytesIn + now.FastBytesOut - before.FastBytesIn - before.FastBytesOut
}

// kernel is the same for programs under libetran.so, on kernel TCP.
func kernel(t *testing.T, h *testbed.Host, before *adminapi.Stats) uint64 {
	t.Helper()
	now := stats(t, h)
	return now.KernelBytesIn + now.KernelBytesOut - before.KernelBytesIn - before.KernelBytesOut
}

// difference is what was added to counters by reason.
func difference(now, before map[string]uint64) map[string]uint64 {
	d := map[string]uint64{}
	for reason, n := range now {
		if n != before[reason] {
			d[reason] = n - before[reason]
		}
	}
	return d
}

// path names an end's way through the host.
func path(etran bool) string {
	if etran {
		return "etran"
	}
	return "kernel"
}

// combinations calls f as a subtest for every choice of both ends.
func combinations(t *testing.T, f func(t *testing.T, client, server bool)) {
	for _, client := range []bool{false, true} {
		for _, server := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s-%s", path(client), path(server)), func(t *testing.T) {
				f(t, client, server)
			})
		}
	}
}

// longOnly is for tests that take minutes, or depend so much on how busy the
// machine is that they belong into runs that somebody watches: make soak.
func longOnly(t *testing.T) {
	t.Helper()
	if long() == 0 {
		t.Skipf("only with %s: make soak", testbed.LongEnv)
	}
}
