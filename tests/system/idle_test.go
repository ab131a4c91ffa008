// SPDX-License-Identifier: Apache-2.0

package system

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// cpuTime is what the threads of a process have run, to the nanosecond: ticks
// flatter or blame a program that wakes up with the tick.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of process %d: %v", pid, err)
	}
	var sum time.Duration
	for _, thread := range threads {
		data, err := os.ReadFile(thread)
		if err != nil {
			continue // it has ended
		}
		ran, _, _ := strings.Cut(string(data), " ")
		ns, err := strconv.ParseInt(ran, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// After load, with promoted connections open and silent, nobody spins.
func TestIdleCostsNothing(t *testing.T) {
	const watch = 8 * time.Second
	tb := testbed.ForTest(t, testbed.Options{})
	server := startRedis(t, tb, true)
	before := stats(t, tb.A)
	client := start(t, tb.A, testbed.Command{Etran: true, CPUs: []int{clientCPU},
		Args: []string{program(t, "verify"), "--host", testbed.WireB, "--port", "6379",
			"--connections", "50", "--seconds", "2", "--linger", "60",
			// Small values: what Redis' allocator gives back to the
			// kernel for seconds after large ones is not our idleness.
			"--max-value", "1000"}})
	time.Sleep(5 * time.Second)
	if fast(t, tb.A, before) == 0 {
		t.Fatal("the load did not use the fast path")
	}
	list, err := tb.B.Admin().SS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	open := 0
	for _, c := range list.Conns {
		if c.Path == "fast" {
			open++
		}
	}
	if open < 45 {
		t.Errorf("only %d connections are still on the fast path", open)
	}
	daemons := []int{}
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		s, err := h.Admin().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		daemons = append(daemons, s.Pid)
	}
	pids := append([]int{server.Pid(), client.Pid()}, daemons...)
	used := make([]time.Duration, len(pids))
	for i, pid := range pids {
		used[i] = cpuTime(t, pid)
	}
	time.Sleep(watch)
	for i, pid := range pids {
		share := float64(cpuTime(t, pid)-used[i]) / float64(watch)
		t.Logf("pid %d (%s): %.2f %% CPU", pid, []string{"redis", "client", "etrand A", "etrand B"}[i], 100*share)
		if share > 0.005 {
			t.Errorf("pid %d uses %.2f %% of a CPU while idle", pid, 100*share)
		}
	}
}
