// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// Redis keeps its promises when its connections are on the fast path: what it
// acknowledged it has, what it saves is what it had, and its clients see what
// they see of a Redis on kernel TCP.
func TestRedisKeepsItsPromises(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	for _, promise := range []struct {
		name string
		test func(*testing.T, *testbed.Testbed)
	}{
		{"a snapshot under load", snapshot},
		{"a log rewritten under load", rewrite},
		{"daemonize", daemonize},
		{"the end by SIGTERM", terminate},
		{"MONITOR", monitor},
		{"publish and subscribe", publish},
		{"BLPOP", blockingPop},
		{"1000 connections", manyConnections},
		{"CONFIG, MULTI and errors", transcripts},
		{"CLIENT KILL", clientKill},
		{"idle time-out", idleTimeout},
		{"large pipelines and values", large},
		{"io-threads", ioThreads},
	} {
		t.Run(promise.name, func(t *testing.T) { promise.test(t, tb) })
	}
}

// counters are clients that each count up a key of their own as fast as they
// can, so that what Redis acknowledged is known at every moment.
type counters struct {
	clients []*client
	acked   []atomic.Int64
	stop    atomic.Bool
	done    chan error
}

func startCounters(t *testing.T, tb *testbed.Testbed, n int) *counters {
	t.Helper()
	c := &counters{acked: make([]atomic.Int64, n), done: make(chan error, n)}
	for range n {
		c.clients = append(c.clients, dial(t, tb.A, serverAddress))
	}
	warm(t, tb.B, c.clients...)
	for i := range c.clients {
		go func() { c.done <- c.count(i) }()
	}
	return c
}

func (c *counters) count(i int) error {
	for n := int64(1); !c.stop.Load(); n++ {
		reply, err := redis.Int64(c.clients[i].Do("INCR", name("counter", i)))
		if err != nil || reply != n {
			return fmt.Errorf("counter %d: %d instead of %d, %w", i, reply, n, err)
		}
		c.acked[i].Store(n)
	}
	return nil
}

func (c *counters) total() (sum int64) {
	for i := range c.acked {
		sum += c.acked[i].Load()
	}
	return sum
}

// end stops the clients, which must have seen no error.
func (c *counters) end(t *testing.T) {
	t.Helper()
	c.stop.Store(true)
	for range c.clients {
		if err := <-c.done; err != nil {
			t.Error(err)
		}
	}
}

func (c *counters) keys() []any {
	var keys []any
	for i := range c.clients {
		keys = append(keys, name("counter", i))
	}
	return keys
}

// startLoad runs the verifying client under eTran in the background; the
// function that it returns waits for its end and judges it.
func startLoad(t *testing.T, tb *testbed.Testbed, seconds string) (end func()) {
	t.Helper()
	done := make(chan struct{})
	a, b := stats(t, tb.A), stats(t, tb.B)
	go func() {
		defer close(done)
		// Small values: many commands, on a machine with other work too.
		verifyAt(t, tb, testbed.WireB, "6379", "--connections", "50", "--seconds", seconds, "--max-value", "20000")
	}()
	return func() {
		<-done
		usedFast(t, tb.A, a)
		usedFast(t, tb.B, b)
	}
}

// usedFast makes sure that a good part of a host's payload since before went
// by the fast path.
func usedFast(t *testing.T, h *testbed.Host, before *adminapi.Stats) {
	t.Helper()
	moved, rest := fast(t, h, before), kernel(t, h, before)
	t.Logf("host %s: %d of %d kB on the fast path", h.Name, moved>>10, (moved+rest)>>10)
	if moved < 1<<20 || moved < rest/4 {
		t.Errorf("host %s moved only %d of %d bytes on the fast path", h.Name, moved, moved+rest)
	}
}

// persistence waits until INFO says that a field has a value.
func persistence(t *testing.T, c *client, want string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		info := c.text("INFO", "persistence")
		if strings.Contains(info, want+"\r\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s in %s", want, info)
		}
	}
}

// reload starts a Redis that never saw eTran on the files of another one.
func reload(t *testing.T, tb *testbed.Testbed, dir string, options ...string) *client {
	t.Helper()
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	serve(t, tb.A, false, append([]string{"--dir", copied}, options...)...)
	c := dial(t, tb.A, "127.0.0.1:6379")
	persistence(t, c, "\nloading:0")
	return c
}

// values reads integers.
func values(t *testing.T, reply any, err error) []int64 {
	t.Helper()
	list, err := redis.Int64s(reply, err)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// BGSAVE while clients write. Redis holds their commands back for a moment, in
// which it says what it has and forks: the file must say the same.
func snapshot(t *testing.T, tb *testbed.Testbed) {
	dir := t.TempDir()
	serve(t, tb.B, true, "--dir", dir, "--dbfilename", "promise.rdb")
	control := dial(t, tb.A, serverAddress)
	control.do("DEBUG", "POPULATE", 2000, "filler", 10000)
	// The child takes two seconds at least.
	control.do("CONFIG", "SET", "rdb-key-save-delay", 1000)
	warm(t, tb.B, control)
	load := startLoad(t, tb, "5")
	counting := startCounters(t, tb, 8)
	// With a child that holds them, they would not come there.
	awaitFast(t, tb.B, 0, 50+8)

	isFast(t, tb.B, counting.clients...)
	control.do("CLIENT", "PAUSE", patience.Milliseconds(), "WRITE")
	reply, err := control.Do("MGET", counting.keys()...)
	saved := values(t, reply, err)
	control.do("BGSAVE")
	control.do("CLIENT", "UNPAUSE")
	before, moved := counting.total(), stats(t, tb.B)
	persistence(t, control, "rdb_bgsave_in_progress:0")
	persistence(t, control, "rdb_last_bgsave_status:ok")
	if n := counting.total() - before; n < 8 || fast(t, tb.B, moved) == 0 {
		t.Errorf("only %d increments during the save, %d bytes on the fast path", n, fast(t, tb.B, moved))
	}
	counting.end(t)
	load()
	isFast(t, tb.B, counting.clients...)

	other := reload(t, tb, dir, "--dbfilename", "promise.rdb")
	reply, err = other.Do("MGET", counting.keys()...)
	for i, got := range values(t, reply, err) {
		if got != saved[i] {
			t.Errorf("counter %d is %d in the file, was %d", i, got, saved[i])
		}
	}
}

// BGREWRITEAOF while clients write: in the end the log has exactly what was
// acknowledged.
func rewrite(t *testing.T, tb *testbed.Testbed) {
	dir := t.TempDir()
	serve(t, tb.B, true, "--dir", dir, "--appendonly", "yes", "--appendfsync", "everysec")
	control := dial(t, tb.A, serverAddress)
	control.do("DEBUG", "POPULATE", 1000, "filler", 10000)
	control.do("CONFIG", "SET", "rdb-key-save-delay", 1000)
	warm(t, tb.B, control)
	load := startLoad(t, tb, "4")
	counting := startCounters(t, tb, 8)
	awaitFast(t, tb.B, 0, 50+8)
	control.do("BGREWRITEAOF")
	before := counting.total()
	persistence(t, control, "aof_rewrite_in_progress:0")
	persistence(t, control, "aof_last_bgrewrite_status:ok")
	if n := counting.total() - before; n < 8 {
		t.Errorf("only %d increments during the rewrite", n)
	}
	load()
	isFast(t, tb.B, counting.clients...)
	counting.end(t)

	digest := control.text("DEBUG", "DIGEST")
	other := reload(t, tb, dir, "--appendonly", "yes")
	reply, err := other.Do("MGET", counting.keys()...)
	for i, got := range values(t, reply, err) {
		if got != counting.acked[i].Load() {
			t.Errorf("counter %d is %d in the log, %d were acknowledged", i, got, counting.acked[i].Load())
		}
	}
	if d := other.text("DEBUG", "DIGEST"); d != digest {
		t.Errorf("the log's digest is %s, the server's was %s", d, digest)
	}
}

// A server that puts itself into the background forks before it serves.
func daemonize(t *testing.T, tb *testbed.Testbed) {
	pidfile := filepath.Join(t.TempDir(), "pid")
	run(t, tb.B, testbed.Command{Etran: true, Args: []string{"redis-server", "--port", "6379", "--protected-mode", "no",
		"--save", "", "--dir", t.TempDir(), "--daemonize", "yes", "--pidfile", pidfile}})
	awaitListener(t, tb.B, "127.0.0.1:6379")
	startLoad(t, tb, "2")()
	c := dial(t, tb.A, serverAddress)
	warm(t, tb.B, c)
	if _, err := c.Do("SHUTDOWN", "NOSAVE"); !errors.Is(err, io.EOF) {
		t.Errorf("SHUTDOWN: %v", err)
	}
}

// onBoth runs a scenario against a Redis on kernel TCP and one under eTran,
// whose transcripts must be the same.
func onBoth(t *testing.T, tb *testbed.Testbed, scenario func(t *testing.T, etran bool) []string) {
	t.Helper()
	var transcripts [2][]string
	for i, etran := range []bool{false, true} {
		ok := t.Run(path(etran), func(t *testing.T) { transcripts[i] = scenario(t, etran) })
		if !ok {
			return
		}
	}
	for i := range max(len(transcripts[0]), len(transcripts[1])) {
		line := func(list []string) string {
			if i < len(list) {
				return list[i]
			}
			return "(nothing)"
		}
		if line(transcripts[0]) != line(transcripts[1]) {
			t.Errorf("line %d: kernel TCP %q, eTran %q", i, line(transcripts[0]), line(transcripts[1]))
		}
	}
}

// prepare warms connections if the server is under eTran.
func prepare(t *testing.T, tb *testbed.Testbed, etran bool, clients ...*client) {
	t.Helper()
	if etran {
		warm(t, tb.B, clients...)
	}
}

// SIGTERM: Redis saves and ends; clients see the end of their connections as
// they would with kernel TCP.
func terminate(t *testing.T, tb *testbed.Testbed) {
	onBoth(t, tb, func(t *testing.T, etran bool) []string {
		dir := t.TempDir()
		server := serve(t, tb.B, etran, "--dir", dir, "--save", "3600 1")
		idle, blocked, subscribed := dial(t, tb.A, serverAddress), dial(t, tb.A, serverAddress), dial(t, tb.A, serverAddress)
		prepare(t, tb, etran, idle, blocked, subscribed)
		for i := range 1000 {
			idle.do("SET", name("key", i), i)
		}
		if err := errors.Join(blocked.Send("BLPOP", "queue", 0), blocked.Flush(),
			subscribed.Send("SUBSCRIBE", "channel"), subscribed.Flush()); err != nil {
			t.Fatal(err)
		}
		if _, err := subscribed.Receive(); err != nil {
			t.Fatal(err)
		}
		prepare(t, tb, etran, idle)
		if etran {
			isFast(t, tb.B, idle, blocked, subscribed)
		}
		if err := server.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var seen []string
		for _, c := range []*client{idle, blocked, subscribed} {
			reply, err := c.Receive()
			seen = append(seen, fmt.Sprintf("%v, %v", reply, errorKind(err)))
		}
		seen = append(seen, fmt.Sprint("exit: ", server.Wait(t.Context())))
		other := reload(t, tb, dir)
		return append(seen, fmt.Sprint(other.do("DBSIZE"), other.text("GET", "key:999")))
	})
}

// errorKind is an error without addresses and ports.
func errorKind(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return fmt.Sprint(err)
}

// MONITOR shows every command, in order.
func monitor(t *testing.T, tb *testbed.Testbed) {
	const commands = 5000
	serve(t, tb.B, true)
	watcher, worker := dial(t, tb.A, serverAddress), dial(t, tb.A, serverAddress)
	warm(t, tb.B, watcher, worker)
	watcher.do("MONITOR")
	for i := range commands {
		if err := worker.Send("SET", name("key", i), i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := worker.Do(""); err != nil {
		t.Fatal(err)
	}
	for i := range commands {
		line, err := redis.String(watcher.Receive())
		want := fmt.Sprintf(`[0 %s] "SET" "key:%d" "%d"`, worker.local(), i, i)
		if err != nil || !strings.HasSuffix(line, want) {
			t.Fatalf("MONITOR printed %q, %v; want %q", line, err, want)
		}
	}
	isFast(t, tb.B, watcher, worker)
}

// Messages reach every subscriber, all and in order.
func publish(t *testing.T, tb *testbed.Testbed) {
	const messages = 20000
	serve(t, tb.B, true)
	publisher := dial(t, tb.A, serverAddress)
	subscribers := []*client{dial(t, tb.A, serverAddress), dial(t, tb.A, serverAddress)}
	warm(t, tb.B, append(subscribers, publisher)...)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	printer := start(t, tb.A, testbed.Command{Etran: true, Stdout: out,
		Args: []string{"redis-cli", "-h", testbed.WireB, "--csv", "SUBSCRIBE", "channel"}})
	got := make(chan error, len(subscribers))
	subscribers[0].do("SUBSCRIBE", "channel")
	subscribers[1].do("PSUBSCRIBE", "chan*")
	for _, c := range subscribers {
		go func() { got <- receiveAll(c, messages) }()
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		n, err := redis.Int64s(publisher.do("PUBSUB", "NUMSUB", "channel").([]any)[1:], nil)
		if err == nil && n[0] == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d subscribers, %v", n, err)
		}
	}
	before := stats(t, tb.B)
	for i := range messages {
		if err := publisher.Send("PUBLISH", "channel", message(i)); err != nil {
			t.Fatal(err)
		}
		if i%100 == 99 {
			if _, err := publisher.Do(""); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range subscribers {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	isFast(t, tb.B, append(subscribers, publisher)...)
	if moved := fast(t, tb.B, before); moved < 3*messages*100 {
		t.Errorf("only %d bytes on the fast path", moved)
	}
	checkPrinted(t, out.Name(), messages)
	printer.Stop()
}

// message is recognisable and has about a hundred octets.
func message(i int) string { return fmt.Sprintf("%d:%s", i, strings.Repeat("m", 90)) }

func receiveAll(c *client, messages int) error {
	for i := range messages {
		reply, err := redis.Values(c.Receive())
		if err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if got, err := redis.String(reply[len(reply)-1], nil); err != nil || got != message(i) {
			return fmt.Errorf("message %d is %q, %w", i, got, err)
		}
	}
	return nil
}

// checkPrinted checks what redis-cli --csv prints, which writes its output when
// a buffer is full: the last messages may be missing.
func checkPrinted(t *testing.T, path string, messages int) {
	t.Helper()
	const buffer = 4096
	var text strings.Builder
	text.WriteString("Reading messages... (press Ctrl-C to quit)\n\"subscribe\",\"channel\",1\n")
	for i := range messages {
		fmt.Fprintf(&text, "\"message\",\"channel\",%q\n", message(i))
	}
	want := text.String()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(want, string(got)) {
			t.Fatalf("redis-cli printed something else than it should: %d bytes", len(got))
		}
		if len(got) >= len(want)-buffer {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("redis-cli printed only %d of %d bytes", len(got), len(want))
		}
	}
}

// BLPOP waits as long as it was told, and a push ends it at once.
func blockingPop(t *testing.T, tb *testbed.Testbed) {
	serve(t, tb.B, true)
	waiter, pusher := dial(t, tb.A, serverAddress), dial(t, tb.A, serverAddress)
	warm(t, tb.B, waiter, pusher)
	for _, timeout := range []time.Duration{300 * time.Millisecond, time.Second} {
		begin := time.Now()
		if reply := waiter.do("BLPOP", "queue", timeout.Seconds()); reply != nil {
			t.Errorf("BLPOP: %v", reply)
		}
		if took := time.Since(begin); took < timeout || took > timeout+500*time.Millisecond {
			t.Errorf("BLPOP of %v took %v", timeout, took)
		}
	}
	for i := range 50 {
		if err := errors.Join(waiter.Send("BLPOP", "queue", 10), waiter.Flush()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * time.Millisecond)
		begin := time.Now()
		pusher.do("RPUSH", "queue", i)
		reply, err := redis.Strings(waiter.Receive())
		if err != nil || len(reply) != 2 || reply[1] != fmt.Sprint(i) {
			t.Fatalf("BLPOP: %v, %v", reply, err)
		}
		if took := time.Since(begin); took > 500*time.Millisecond {
			t.Errorf("the push was heard after %v", took)
		}
	}
	isFast(t, tb.B, waiter, pusher)
}

// More connections than a program has slots: all work, those above the quota
// on the kernel, and their end is seen.
func manyConnections(t *testing.T, tb *testbed.Testbed) {
	const many, slots = 1200, 992
	serve(t, tb.B, true)
	control := dial(t, tb.B, "127.0.0.1:6379")
	for round := range span(1, 2) {
		var clients []*client
		for range many {
			clients = append(clients, dial(t, tb.A, serverAddress))
		}
		count := use(t, tb, clients, slots)
		t.Logf("round %d: %v; %s", round, count, moves(t, tb.B))
		if count[adminapi.PathFast] < slots*9/10 || count[adminapi.PathFast] > slots {
			t.Errorf("paths are %v", count)
		}
		if n := connected(control); n != many+1 {
			t.Errorf("Redis has %d clients", n)
		}
		for _, c := range clients {
			c.Close()
		}
		for deadline := time.Now().Add(patience); connected(control) != 1; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("Redis still has %d clients", connected(control))
			}
		}
	}
	last := dial(t, tb.A, serverAddress)
	warm(t, tb.B, last)
}

// use uses all connections until as many as there are slots are fast, and
// returns how many are on which path.
func use(t *testing.T, tb *testbed.Testbed, clients []*client, slots int) map[string]int {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		for i := range 10 {
			for _, c := range clients {
				if got := c.text("ECHO", fmt.Sprint(c.local(), i)); got != fmt.Sprint(c.local(), i) {
					t.Fatalf("ECHO: %q", got)
				}
			}
		}
		count := map[string]int{}
		for _, c := range paths(t, tb.B) {
			count[c.Path]++
		}
		if count[adminapi.PathFast] >= slots || time.Now().After(deadline) {
			return count
		}
	}
}

func connected(c *client) int {
	return strings.Count(c.text("CLIENT", "LIST"), "\n")
}

// The same commands get the same answers: settings, transactions, errors.
func transcripts(t *testing.T, tb *testbed.Testbed) {
	onBoth(t, tb, func(t *testing.T, etran bool) []string {
		serve(t, tb.B, etran)
		c, other := dial(t, tb.A, serverAddress), dial(t, tb.A, serverAddress)
		prepare(t, tb, etran, c, other)
		var seen []string
		say := func(c *client, line string) {
			words := strings.Fields(line)
			args := make([]any, len(words)-1)
			for i, w := range words[1:] {
				args[i] = w
			}
			reply, err := c.Do(words[0], args...)
			seen = append(seen, fmt.Sprintf("%s: %q, %v", line, reply, err))
		}
		for _, line := range []string{
			"CONFIG GET maxclients", "CONFIG SET maxclients 5000", "CONFIG GET maxclients",
			"CONFIG SET maxclients 1000000", "CONFIG SET maxclients 10000",
			"CONFIG SET timeout 100", "CONFIG GET timeout", "CONFIG SET timeout 0",
			"CONFIG SET tcp-keepalive 10", "CONFIG GET tcp-keepalive", "CONFIG GET tcp-backlog",
			"CONFIG SET hz 50", "CONFIG GET hz", "CONFIG SET maxmemory 100mb", "CONFIG GET maxmemory",
			"CONFIG SET client-output-buffer-limit normal", "CONFIG SET nonsense 1", "CONFIG RESETSTAT",
			"CLIENT SETNAME tester", "CLIENT GETNAME", "CLIENT NO-EVICT on", "CLIENT REPLY on",
			"SET k v EX 100", "TTL k", "OBJECT ENCODING k", "INCR k", "NOSUCH", "GET", "HGET k f",
			"SETRANGE s 100 x", "STRLEN s", "APPEND s y", "GETRANGE s 99 -1", "SELECT 3", "DBSIZE", "SELECT 99", "SELECT 0",
			"LPUSH l a b c", "LRANGE l 0 -1", "LMOVE l m LEFT RIGHT", "SORT l ALPHA", "ZADD z 1 a 2 b", "ZRANGE z 0 -1 WITHSCORES",
			"EVAL return{1,'two',redis.status_reply('fine')} 0", "EVAL return(redis.call('nosuch')) 0",
			"MULTI", "SET t 1", "INCR t", "LPUSH t x", "EXEC", "MULTI", "NOSUCH", "EXEC", "MULTI", "DISCARD", "EXEC",
			"WATCH w",
		} {
			say(c, line)
		}
		say(other, "SET w changed")
		for _, line := range []string{"MULTI", "GET w", "EXEC", "WAIT 0 10", "RESET", "PING", "FLUSHALL", "DBSIZE"} {
			say(c, line)
		}
		say(other, "CONFIG SET maxclients 2")
		third := dial(t, tb.A, serverAddress)
		reply, err := third.Receive()
		seen = append(seen, fmt.Sprintf("one too many: %v, %v", reply, err))
		reply, err = third.Receive()
		seen = append(seen, fmt.Sprintf("then: %v, %v", reply, errorKind(err)))
		say(other, "QUIT")
		reply, err = other.Receive()
		seen = append(seen, fmt.Sprintf("after QUIT: %v, %v", reply, errorKind(err)))
		if etran {
			isFast(t, tb.B, c)
		}
		return seen
	})
}

// CLIENT LIST knows promoted connections by their addresses, and CLIENT KILL
// ends one and no other.
func clientKill(t *testing.T, tb *testbed.Testbed) {
	unstable := regexp.MustCompile(`(id|fd|age|idle|qbuf|qbuf-free|argv-mem|multi-mem|rbs|rbp|obl|oll|omem|tot-mem|events)=[^ ]*`)
	onBoth(t, tb, func(t *testing.T, etran bool) []string {
		serve(t, tb.B, etran)
		killer, victim, other := dial(t, tb.A, serverAddress), dial(t, tb.A, serverAddress), dial(t, tb.A, serverAddress)
		prepare(t, tb, etran, killer, victim, other)
		var seen []string
		for _, c := range []*client{killer, victim, other} {
			info := strings.ReplaceAll(c.text("CLIENT", "INFO"), c.local(), "ours")
			seen = append(seen, unstable.ReplaceAllString(info, "$1"))
		}
		if err := errors.Join(victim.Send("BLPOP", "queue", 0), victim.Flush()); err != nil {
			t.Fatal(err)
		}
		killer.do("PING")
		if etran {
			isFast(t, tb.B, killer, victim, other)
		}
		seen = append(seen, fmt.Sprint("killed ", killer.do("CLIENT", "KILL", "ADDR", victim.local())))
		reply, err := victim.Receive()
		seen = append(seen, fmt.Sprintf("victim: %v, %v", reply, errorKind(err)))
		id := other.do("CLIENT", "ID")
		seen = append(seen, fmt.Sprint("killed ", killer.do("CLIENT", "KILL", "ID", id)))
		reply, err = other.Receive()
		seen = append(seen, fmt.Sprintf("other: %v, %v", reply, errorKind(err)))
		reply, err = killer.Do("CLIENT", "KILL", "ADDR", killer.local(), "SKIPME", "no")
		seen = append(seen, fmt.Sprintf("itself: %v, %v", reply, err))
		reply, err = killer.Receive()
		return append(seen, fmt.Sprintf("then: %v, %v", reply, errorKind(err)))
	})
}

// A promoted connection without commands is closed as any other.
func idleTimeout(t *testing.T, tb *testbed.Testbed) {
	onBoth(t, tb, func(t *testing.T, etran bool) []string {
		serve(t, tb.B, etran, "--timeout", "2")
		idle, busy := dial(t, tb.A, serverAddress), dial(t, tb.A, serverAddress)
		prepare(t, tb, etran, idle, busy)
		closed := make(chan error, 1)
		begin := time.Now()
		go func() {
			_, err := idle.Receive()
			closed <- err
		}()
		for {
			select {
			case err := <-closed:
				took := time.Since(begin)
				if took < time.Second || took > 6*time.Second { // Redis counts whole seconds
					t.Errorf("closed after %v", took)
				}
				if etran {
					isFast(t, tb.B, busy)
				}
				return []string{errorKind(err)}
			case <-time.After(200 * time.Millisecond):
				busy.do("PING")
			}
		}
	})
}

// Ten thousand commands at once, and values of up to 50 MB.
func large(t *testing.T, tb *testbed.Testbed) {
	const commands, size = 10000, 50 << 20
	serve(t, tb.B, true)
	c := dial(t, tb.A, serverAddress)
	warm(t, tb.B, c)
	before := stats(t, tb.B)
	for i := range commands {
		if err := c.Send("SET", name("key", i), message(i)); err != nil {
			t.Fatal(err)
		}
		if err := c.Send("GET", name("key", i)); err != nil {
			t.Fatal(err)
		}
	}
	replies, err := redis.Strings(c.Do(""))
	if err != nil || len(replies) != 2*commands {
		t.Fatalf("%d replies, %v", len(replies), err)
	}
	for i := range commands {
		if replies[2*i] != "OK" || replies[2*i+1] != message(i) {
			t.Fatalf("replies %q and %q", replies[2*i], replies[2*i+1])
		}
	}
	value := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(value)
	for _, n := range []int{1 << 20, size} {
		c.do("SET", "value", value[:n])
		got, err := redis.Bytes(c.Do("GET", "value"))
		if err != nil || !bytes.Equal(got, value[:n]) {
			t.Fatalf("%d bytes came back, %v", len(got), err)
		}
	}
	usedFast(t, tb.B, before)
}

// Redis' I/O threads read and write for the main one.
func ioThreads(t *testing.T, tb *testbed.Testbed) {
	serve(t, tb.B, true, "--io-threads", "2", "--io-threads-do-reads", "yes")
	startLoad(t, tb, "4")()
}

// A replica on the other host gets all that the master has, first at once and
// then as it comes, whichever end is under eTran.
func TestReplication(t *testing.T) {
	longOnly(t)
	for _, c := range []struct {
		name            string
		replica, master bool // under eTran
		diskless        string
	}{
		{"kernel replica", false, true, "yes"},
		{"kernel replica, from a file", false, true, "no"},
		{"kernel master", true, false, "yes"},
		{"both eTran", true, true, "yes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tb := testbed.ForTest(t, testbed.Options{})
			serve(t, tb.B, c.master, "--repl-diskless-sync", c.diskless, "--repl-diskless-sync-delay", "0",
				"--rdbcompression", "no")
			serve(t, tb.A, c.replica, "--repl-ping-replica-period", "1")
			master, replica := dial(t, tb.B, "127.0.0.1:6379"), dial(t, tb.A, "127.0.0.1:6379")
			master.do("DEBUG", "POPULATE", 120, "filler", 1<<20)
			a, b := stats(t, tb.A), stats(t, tb.B)
			replica.do("REPLICAOF", testbed.WireB, 6379)
			inSync(t, master, replica)
			synced := stats(t, tb.B)
			for i := range 20000 {
				if err := master.Send("SET", name("live", i%1000), message(i)); err != nil {
					t.Fatal(err)
				}
				if i%100 == 99 {
					if _, err := master.Do(""); err != nil {
						t.Fatal(err)
					}
				}
			}
			inSync(t, master, replica)
			if m, r := master.text("DEBUG", "DIGEST"), replica.text("DEBUG", "DIGEST"); m != r {
				t.Errorf("the master's digest is %s, the replica's %s", m, r)
			}
			if n := replica.do("DBSIZE"); n != int64(1120) {
				t.Errorf("the replica has %v keys", n)
			}
			for h, path := range map[*testbed.Host]struct {
				etran  bool
				before *adminapi.Stats
			}{tb.A: {c.replica, a}, tb.B: {c.master, b}} {
				t.Logf("host %s: %d kB fast, %d on the kernel; %s", h.Name, fast(t, h, path.before)>>10,
					kernel(t, h, path.before)>>10, moves(t, h))
				if moved := fast(t, h, path.before); path.etran != (moved > 1<<20) {
					t.Errorf("host %s moved %d bytes on the fast path, kernel %d; after the sync %d",
						h.Name, moved, kernel(t, h, path.before), fast(t, h, synced))
				}
			}
		})
	}
}

// moves tells what a host's daemon did with connections.
func moves(t *testing.T, h *testbed.Host) string {
	t.Helper()
	s := stats(t, h)
	return fmt.Sprintf("switches took p99 %.0f and %.0f µs, promotions %d, refused %v, aborted %v; demotions %v; retransmissions %d, drops %v",
		s.PromotePause.P99Us, s.DemotePause.P99Us, s.Promotions, s.PromotionsRefused, s.PromotionsAborted, s.Demotions, s.Retransmissions, s.Drops)
}

// inSync waits until the replica has all that the master sent.
func inSync(t *testing.T, master, replica *client) {
	t.Helper()
	offset := regexp.MustCompile(`master_repl_offset:(\d+)`)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		info := replica.text("INFO", "replication")
		want := offset.FindStringSubmatch(master.text("INFO", "replication"))
		got := regexp.MustCompile(`slave_repl_offset:(\d+)`).FindStringSubmatch(info)
		if strings.Contains(info, "master_link_status:up") && want != nil && got != nil && got[1] == want[1] {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the replica does not follow: %s", info)
		}
	}
}
