// SPDX-License-Identifier: Apache-2.0

package system

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// cpuTime is what a process has used in user and kernel mode.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	const hz = 100 // USER_HZ, fixed on Linux
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	var ticks int
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / hz
}

// After load, with promoted connections open and silent, nobody spins.
func TestIdleCostsNothing(t *testing.T) {
	const watch = 8 * time.Second
	tb := testbed.ForTest(t, testbed.Options{})
	server := startRedis(t, tb, true)
	before := stats(t, tb.A)
	client := start(t, tb.A, testbed.Command{Etran: true, CPUs: []int{clientCPU},
		Args: []string{program(t, "verify"), "--host", testbed.WireB, "--port", "6379",
			"--connections", "50", "--seconds", "2", "--linger", "60"}})
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
