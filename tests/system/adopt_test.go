// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// streaming are streams at which nobody may see that a daemon dies.
type streaming struct{ *streams }

// stream starts content-checked streams in both directions, both ends under
// eTran, which go on until check ends them.
func stream(t *testing.T, tb *testbed.Testbed, more ...string) streaming {
	t.Helper()
	t.Cleanup(func() { keepLogs(t, tb) })
	return streaming{startStreams(t, tb, streamEnds{client: true, server: true},
		append([]string{"--connections", "8", "--rate", "1000000"}, more...)...)}
}

// keepLogs shows the ends of the daemons' logs if the test failed.
func keepLogs(t *testing.T, tb *testbed.Testbed) {
	if !t.Failed() {
		return
	}
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		text, err := os.ReadFile(h.LogFile())
		if err != nil {
			t.Log(err)
		}
		t.Logf("etrand on host %s:\n%s", h.Name, text[max(0, len(text)-20000):])
	}
}

// check ends the streams: not a byte is lost, and nobody saw an error.
func (s streaming) check(t *testing.T) (client streamed) {
	t.Helper()
	if !s.running() {
		t.Error("a program has ended early")
	}
	s.stop()
	client, _ = s.finishWithin(t, 2*time.Minute)
	return client
}

// awaitOnFast waits until a host has n connections on the fast path.
func awaitOnFast(t *testing.T, h *testbed.Host, n int) {
	t.Helper()
	admin := h.Admin()
	defer admin.Close()
	var fast int
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		list, err := admin.SS(t.Context())
		if err != nil {
			continue
		}
		fast = 0
		for _, c := range list.Conns {
			if c.Path == adminapi.PathFast {
				fast++
			}
		}
		if fast >= n {
			return
		}
	}
	list, _ := h.Admin().SS(t.Context()) // as far as there is an answer
	for _, c := range list.Conns {
		t.Logf("%+v", c)
	}
	t.Fatalf("host %s has %d connections on the fast path, not %d: %+v", h.Name, fast, n, stats(t, h))
}

// bringBack asks for promotions until n connections are on the fast path: by
// themselves those that were switched so often would wait for long.
func bringBack(t *testing.T, h *testbed.Host, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		admin := h.Admin()
		defer admin.Close()
		for ctx.Err() == nil {
			_, _ = admin.Promote(ctx, adminapi.SwitchRequest{All: true}) // awaitOnFast looks
			time.Sleep(200 * time.Millisecond)
		}
	}()
	awaitOnFast(t, h, n)
}

// adopted sums up what the daemons of a host have taken over.
type adopted struct {
	kills, apps, conns, resumed uint64
	recovered, lost             map[string]uint64
}

func (a *adopted) add(s *adminapi.Stats) {
	a.apps += s.Adopted.Apps
	a.conns += s.Adopted.Conns
	a.resumed += s.Adopted.Resumed
	for name, n := range s.Adopted.Recovered {
		a.recovered[name] += n
	}
	for name, n := range s.Adopted.Lost {
		a.lost[name] += n
	}
}

func restart(t *testing.T, h *testbed.Host, pause time.Duration) {
	t.Helper()
	if err := h.StopDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(pause)
	if err := h.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The daemons are killed at random moments, while connections are switched at
// random at both ends, and start again.
func TestKillDaemonAtRandom(t *testing.T) {
	kills := span(10, 200)
	if n, err := strconv.Atoi(os.Getenv("ETRAN_TEST_KILLS")); err == nil {
		kills = n
	}
	for _, mode := range [][]string{nil, {"--blocking"}} {
		t.Run(strings.Join(append([]string{"streams"}, mode...), ""), func(t *testing.T) {
			tb := testbed.ForTest(t, testbed.Options{})
			killAtRandom(t, tb, kills/2, mode)
		})
	}
}

func killAtRandom(t *testing.T, tb *testbed.Testbed, kills int, mode []string) {
	s := stream(t, tb, mode...)
	awaitOnFast(t, tb.A, 4)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		switchAtRandom(t.Context(), tb, stop)
	}()
	total := map[*testbed.Host]*adopted{}
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		total[h] = &adopted{recovered: map[string]uint64{}, lost: map[string]uint64{}}
	}
	for range kills {
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		h := tb.A
		if rand.IntN(2) == 0 {
			h = tb.B
		}
		total[h].add(stats(t, h))
		total[h].kills++
		restart(t, h, time.Duration(rand.IntN(200))*time.Millisecond)
	}
	close(stop)
	<-done
	for h, a := range total {
		time.Sleep(500 * time.Millisecond) // sessions
		bringBack(t, h, 6)
		a.add(stats(t, h))
		t.Logf("host %s: %+v", h.Name, *a)
		if a.kills > 0 && (a.conns == 0 || a.resumed == 0) || len(a.lost) > 0 {
			t.Errorf("host %s: %+v", h.Name, *a)
		}
	}
	client := s.check(t)
	t.Logf("longest gap per connection: p50 %.0f p99 %.0f max %.0f µs",
		client.StallUs.P50, client.StallUs.P99, client.StallUs.Max)
}

// testDaemon builds an etrand that can be made to die at a point.
func testDaemon(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "etrand")
	cmd := exec.Command("go", "build", "-tags", "etrantest", "-o", path, "../../runtime/cmd/etrand")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// dyingPoints are the places between two steps of a switch at which the daemon
// can be made to die (package die).
var dyingPoints = []string{
	"observe-begun", "observe-journal", "observe-record", "observe-state", "observe-flow", "observing",
	"switch-begun", "switch-hold", "dump-repairing", "switch-dumped", "switch-journal", "switch-asleep",
	"switch-queues", "switch-rebuilt", "switch-unread", "switch-consumed", "switch-active", "switch-fast",
	"abort-awake", "abort-removed", "aborted",
	"demote-hold", "demote-frozen", "demote-drained", "rebuild-disconnected", "rebuild-step",
	"restore-rebuilt", "restore-timers", "restore-left", "restore-awake", "restore-sent", "restore-removed",
	"demoted", "reinject-injected", "reinject-dropped",
}

// At every point at which it can be made to, the daemon dies in the middle of
// switches; the next one goes on. A usual run takes some points by chance.
func TestDaemonDiesBetweenSteps(t *testing.T) {
	path := testDaemon(t)
	points := slices.Clone(dyingPoints)
	if long() == 0 {
		rand.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		points = points[:6]
	}
	if only := os.Getenv("ETRAN_TEST_POINTS"); only != "" {
		points = strings.Split(only, ",")
	}
	tb := testbed.ForTest(t, testbed.Options{})
	for group := range slices.Chunk(points, 6) {
		t.Run(strings.Join(group, " "), func(t *testing.T) { dieAt(t, tb, path, group) })
	}
}

func dieAt(t *testing.T, tb *testbed.Testbed, path string, points []string) {
	var more []string
	if rand.IntN(2) == 0 {
		more = []string{"--blocking"}
	}
	s := stream(t, tb, more...)
	// Promotions of what sends as much as it can are given up now and then.
	bulk := startStreams(t, tb, streamEnds{client: true, server: true, port: 7001}, "--connections", "2")
	endSwitching := startSwitching(t, tb)
	for i, point := range points {
		h := []*testbed.Host{tb.A, tb.B}[i%2]
		if err := h.StopDaemon(syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		err := h.StartOtherDaemon(t.Context(), testbed.Daemon{Path: path, Env: []string{"ETRAN_TEST_DIE_AT=" + point}})
		if err != nil && h.DaemonPid() != 0 {
			t.Fatal(err) // else it was quick to die
		}
		for deadline := time.Now().Add(12 * time.Second); h.DaemonPid() != 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("point %s was not reached: %+v", point, *stats(t, h))
				if err := h.StopDaemon(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := h.StartDaemon(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %+v", point, stats(t, h).Adopted)
	}
	endSwitching()
	bulk.stop()
	bulk.finish(t)
	client := s.check(t)
	t.Logf("longest gap per connection: p50 %.0f p99 %.0f max %.0f µs", client.StallUs.P50, client.StallUs.P99, client.StallUs.Max)
}

// pinned opens one of a host's pinned maps.
func pinned(t *testing.T, h *testbed.Host, name string) *ebpf.Map {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(h.PinDir(), "maps-"+strconv.Itoa(abi.Version), name), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// programs are the ids of the programs on a host's device and taps, by pin.
func programs(t *testing.T, h *testbed.Host) map[string]ebpf.ProgramID {
	t.Helper()
	ids := map[string]ebpf.ProgramID{}
	pins, err := os.ReadDir(h.PinDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, pin := range pins {
		if pin.IsDir() {
			continue
		}
		l, err := link.LoadPinnedLink(filepath.Join(h.PinDir(), pin.Name()), nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		ids[pin.Name()] = info.Program
		l.Close()
	}
	return ids
}

// expectNothingLeft: no program runs under eTran any more, so the daemon and
// its keeper have nothing that an idle daemon does not have.
func expectNothingLeft(t *testing.T, h *testbed.Host) {
	t.Helper()
	var left string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if left = leftovers(t, h); left == "" {
			return
		}
	}
	t.Errorf("host %s: %s", h.Name, left)
}

func leftovers(t *testing.T, h *testbed.Host) string {
	t.Helper()
	for name := range programs(t, h) {
		if strings.HasPrefix(name, "tap-") {
			return "pin " + name
		}
	}
	var key abi.FlowKey
	var index uint32
	if pinned(t, h, "flows").Iterate().Next(&key, &index) {
		return fmt.Sprintf("flow %+v of connection %d", key, index)
	}
	var conn abi.Conn
	conns := pinned(t, h, "conns").Iterate()
	for conns.Next(&index, &conn) {
		if conn.State != uint32(abi.FlowStateNone) {
			return fmt.Sprintf("connection %d in state %d", index, conn.State)
		}
	}
	keepers, err := h.KeeperPids()
	if err != nil || len(keepers) != 1 {
		return fmt.Sprintf("keepers %v, %v", keepers, err)
	}
	for pid, most := range map[int]int{keepers[0]: 16, h.DaemonPid(): 60} {
		kinds := map[string]int{}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return err.Error()
		}
		for _, fd := range fds {
			target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
			kind, _, _ := strings.Cut(target, ":[")
			kinds[kind]++
			// The daemon has pidfds of its keeper, too.
			if strings.Contains(target, "memfd:etran-") || pid == keepers[0] && strings.Contains(target, "pidfd") {
				return fmt.Sprintf("process %d has %s", pid, target)
			}
		}
		if len(fds) > most {
			return fmt.Sprintf("process %d has %d descriptors: %v", pid, len(fds), kinds)
		}
	}
	return ""
}

// A stopped daemon gives everything back, and takes its keeper with it.
func expectStopped(t *testing.T, h *testbed.Host) {
	t.Helper()
	if err := h.StopDaemon(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if pids, err := h.KeeperPids(); err != nil || len(pids) != 0 {
		t.Errorf("host %s: keepers %v, %v", h.Name, pids, err)
	}
	if pins, err := os.ReadDir(h.PinDir()); err == nil && len(pins) > 0 {
		t.Errorf("host %s: pins %v", h.Name, pins)
	}
}

// Without its daemon for some seconds, a host's connections go on at the same
// rate, and new ones use the kernel. Then everything is as before; and when all
// programs have ended, nothing is left of them.
func TestDaemonIsAway(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	s := stream(t, tb)
	awaitOnFast(t, tb.A, 8)
	awaitOnFast(t, tb.B, 8)
	rate := func(d time.Duration) float64 {
		before := stats(t, tb.A)
		time.Sleep(d)
		return float64(fast(t, tb.A, before)) / d.Seconds()
	}
	before := rate(time.Second)
	if err := tb.B.StopDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	away := rate(1500 * time.Millisecond)
	args := []string{program(t, "streams"), "--port", "7001", "--connections", "2", "--bytes", "300000"}
	server := start(t, tb.B, testbed.Command{Args: append(args, "--server"), Etran: true, Stdout: io.Discard})
	time.Sleep(200 * time.Millisecond)
	var other streamed
	runJSON(t, tb.A, testbed.Command{Args: append(args, "--host", testbed.WireB)}, 20*time.Second, &other)
	other.check(t, "new connections")
	if err := server.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	away = min(away, rate(1500*time.Millisecond))
	if err := tb.B.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := rate(time.Second)
	t.Logf("payload on A's fast path per second: before %.0f, without B's daemon %.0f, after %.0f", before, away, after)
	if away < before/2 || after < before/2 {
		t.Error("the rate broke down")
	}
	if got := stats(t, tb.B); got.Adopted.Recovered["fast"] != 8 || len(got.Demotions) != 0 {
		t.Errorf("adopted %+v, demotions %v", got.Adopted, got.Demotions)
	}
	s.check(t)
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		expectNothingLeft(t, h)
		expectStopped(t, h)
	}
}

// A new build takes over from one that hands over: the connections stay where
// they are, and the programs are really the new ones.
func TestUpgrade(t *testing.T) {
	next := filepath.Join(t.TempDir(), "etrand")
	cmd := exec.Command("go", "build", "-ldflags", "-X main.version=next", "-o", next, "../../runtime/cmd/etrand")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tb := testbed.ForTest(t, testbed.Options{})
	s := stream(t, tb)
	awaitOnFast(t, tb.B, 8)
	before, pid := programs(t, tb.B), s.server.Pid()
	if err := tb.B.StopDaemon(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	if err := tb.B.StartOtherDaemon(t.Context(), testbed.Daemon{Path: next}); err != nil {
		t.Fatal(err)
	}
	status, err := tb.B.Admin().Status(t.Context())
	if err != nil || status.Version != "next" || len(status.Apps) != 1 || status.Apps[0].Pid != pid || status.UptimeSeconds > 60 {
		t.Errorf("status %+v, %v", status, err)
	}
	after := programs(t, tb.B)
	for pin, id := range before {
		// The tracepoint's program cannot be replaced without a gap.
		if replaced := after[pin] != id; replaced != (pin != "redirect-err") || after[pin] == 0 {
			t.Errorf("%s: program %d, then %d", pin, id, after[pin])
		}
	}
	if len(before) != 3 || len(after) != 3 {
		t.Errorf("programs %v, then %v", before, after)
	}
	moved := stats(t, tb.B)
	time.Sleep(time.Second)
	if fast(t, tb.B, moved) == 0 || moved.Adopted.Recovered["fast"] != 8 || len(moved.Demotions) != 0 {
		t.Errorf("%+v", moved)
	}
	s.check(t)
}

// A program dies while the daemon is away: its peer learns it, as from Linux,
// when there is a daemon again.
func TestProgramDiesWithoutDaemon(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	args := []string{program(t, "streams"), "--port", "7000", "--connections", "4", "--seconds", "600",
		"--rate", "1000000", "--timeout", "600"}
	server := start(t, tb.B, testbed.Command{Args: append(args, "--server"), Etran: true, Stdout: io.Discard})
	time.Sleep(300 * time.Millisecond)
	client := start(t, tb.A, testbed.Command{Args: append(args, "--host", testbed.WireB), Stdout: io.Discard, Stderr: io.Discard})
	awaitOnFast(t, tb.B, 4)
	if err := tb.B.StopDaemon(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	time.Sleep(500 * time.Millisecond)
	select {
	case <-client.Done():
		t.Error("the peer has ended before there was a daemon: the test is too slow")
	default:
	}
	if err := tb.B.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-client.Done():
	case <-time.After(10 * time.Second):
		t.Error("the peer does not learn that the program died")
	}
	if got := stats(t, tb.B); got.Adopted.Recovered["fast"] != 4 || got.Demotions["death"] != 4 {
		t.Errorf("adopted %+v, demotions %v", got.Adopted, got.Demotions)
	}
	expectNothingLeft(t, tb.B)
}

// The keeper dies: the daemon starts another one, which has everything. Then
// both die: the connections end for the program as by a reset, and new ones are
// promoted as ever.
func TestKeeperDies(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	s := stream(t, tb)
	awaitOnFast(t, tb.B, 8)
	killKeeper := func() int {
		t.Helper()
		pids, err := tb.B.KeeperPids()
		if err != nil || len(pids) != 1 {
			t.Fatalf("keepers %v, %v", pids, err)
		}
		if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		return pids[0]
	}
	old := killKeeper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if pids, _ := tb.B.KeeperPids(); len(pids) == 1 && pids[0] != old {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no new keeper")
		}
	}
	time.Sleep(500 * time.Millisecond) // it gets everything
	restart(t, tb.B, 0)
	if got := stats(t, tb.B).Adopted; got.Recovered["fast"] != 8 {
		t.Errorf("adopted %+v", got)
	}
	s.check(t)
	expectNothingLeft(t, tb.B)

	args := []string{program(t, "streams"), "--port", "7001", "--connections", "4", "--seconds", "600",
		"--rate", "1000000", "--timeout", "600"}
	var complaints bytes.Buffer
	server := start(t, tb.B, testbed.Command{Args: append(args, "--server"), Etran: true, Stdout: io.Discard, Stderr: &complaints})
	time.Sleep(300 * time.Millisecond)
	start(t, tb.A, testbed.Command{Args: append(args, "--host", testbed.WireB), Stdout: io.Discard, Stderr: io.Discard})
	awaitOnFast(t, tb.B, 4)
	daemon := tb.B.DaemonPid()
	if err := syscall.Kill(daemon, syscall.SIGSTOP); err != nil {
		t.Fatal(err) // so that it starts no other keeper
	}
	killKeeper()
	restart(t, tb.B, 0)
	select {
	case <-server.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the program hangs")
	}
	if !strings.Contains(complaints.String(), "reset by peer") {
		t.Errorf("the program saw %q", complaints.String())
	}
	again := stream(t, tb)
	awaitOnFast(t, tb.B, 8)
	again.check(t)
}

// A program outlives both: it gets new rings from the next daemon.
func TestProgramStartsAfresh(t *testing.T) {
	if _, err := exec.LookPath("redis-cli"); err != nil {
		t.Fatal(err)
	}
	tb := testbed.ForTest(t, testbed.Options{})
	startRedis(t, tb, true)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM} {
		before := stats(t, tb.B)
		verify(t, tb, testbed.Command{Etran: true}, "2")
		if fast(t, tb.B, before) == 0 {
			t.Error("the load did not use the fast path")
		}
		if err := tb.B.StopDaemon(signal); err != nil {
			t.Fatal(err)
		}
		if err := tb.B.StartDaemon(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the program finds it
	}
	before := stats(t, tb.B)
	verify(t, tb, testbed.Command{Etran: true}, "2")
	if fast(t, tb.B, before) == 0 {
		t.Error("the load did not use the fast path")
	}
}
