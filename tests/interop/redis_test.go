// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// Host A's clients also talk to host A's node, on the kernel's path.
var redises = []program{
	{name: "redis-cluster", serve: cluster, use: useCluster, client: bulk, server: fast},
	{name: "redis-sentinel", serve: sentinels, use: failOver, client: bulk, server: fast, long: true, once: true},
}

// redisNode is a Redis on a host.
type redisNode struct {
	host    *testbed.Host
	address string
	port    int
}

func (n redisNode) String() string { return fmt.Sprintf("%s:%d", n.address, n.port) }

// nodes are the cluster's: two on host B and one on A, so that they talk over
// the wire, too.
func (r *run) nodes() []redisNode {
	return []redisNode{{r.tb.B, testbed.WireB, 7001}, {r.tb.B, testbed.WireB, 7002}, {r.tb.A, testbed.WireA, 7003}}
}

// redis starts a Redis with a directory of its own.
func (r *run) redis(n redisNode, options ...string) *testbed.Process {
	r.Helper()
	dir, err := os.MkdirTemp(r.dir, "redis-")
	if err != nil {
		r.Fatal(err)
	}
	args := []string{"redis-server", "--bind", n.address, "--port", strconv.Itoa(n.port),
		"--dir", dir, "--save", "", "--protected-mode", "no"}
	return r.start(n.host, n.port, testbed.Command{Args: append(args, options...)})
}

// ask sends a Redis one command.
func (r *run) ask(n redisNode, command ...string) string {
	r.Helper()
	args := []string{"redis-cli", "-h", n.address, "-p", strconv.Itoa(n.port)}
	return strings.TrimSpace(r.use(append(args, command...)...))
}

func cluster(r *run) {
	create := []string{"redis-cli", "--cluster", "create"}
	for _, n := range r.nodes() {
		r.redis(n, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
		create = append(create, n.String())
	}
	r.says(r.use(append(create, "--cluster-yes")...), "All 16384 slots covered")
	for _, n := range r.nodes() {
		r.await("the cluster", func() bool {
			return strings.Contains(r.ask(n, "cluster", "info"), "cluster_state:ok")
		})
	}
}

// useCluster writes and reads through all nodes.
func useCluster(r *run) {
	const keys = 300
	var in, want bytes.Buffer
	for i := range keys {
		fmt.Fprintf(&in, "set key:%d %s\n", i, strings.Repeat(strconv.Itoa(i), 100))
	}
	for i := range keys {
		fmt.Fprintf(&in, "get key:%d\n", i)
	}
	out := regexp.MustCompile(`(?m)^-> .*\n`).ReplaceAllString(r.feed(&in, "redis-cli", "-c", "-h", testbed.WireB, "-p", "7001"), "")
	for range keys {
		want.WriteString("OK\n")
	}
	for i := range keys {
		want.WriteString(strings.Repeat(strconv.Itoa(i), 100) + "\n")
	}
	if out != want.String() {
		r.Errorf("redis-cli said %d octets, not the %d wanted, or others: %s", len(out), want.Len(), tail([]byte(out)))
	}
	out = r.use("redis-benchmark", "--cluster", "-h", testbed.WireB, "-p", "7001", "-q", "-t", "set,get",
		"-c", "12", "-d", "1000", "-n", strconv.Itoa(testbed.Span(20_000, 1_000_000)))
	if strings.Contains(out, "rror") {
		r.Errorf("redis-benchmark said: %s", out)
	}
}

// master and replica, and sentinels on both hosts.
func (r *run) pair() (master, replica redisNode) {
	return redisNode{r.tb.B, testbed.WireB, 6379}, redisNode{r.tb.A, testbed.WireA, 6380}
}

func (r *run) sentinels() []redisNode {
	return []redisNode{{r.tb.A, testbed.WireA, 26379}, {r.tb.B, testbed.WireB, 26380}, {r.tb.B, testbed.WireB, 26381}}
}

func sentinels(r *run) {
	master, replica := r.pair()
	r.redis(master)
	r.redis(replica, "--replicaof", master.address, strconv.Itoa(master.port), "--enable-debug-command", "yes")
	for _, n := range r.sentinels() {
		conf := r.write(fmt.Sprintf("sentinel-%d.conf", n.port), "sentinel.conf",
			map[string]any{"Port": n.port, "Address": n.address, "Dir": r.dir, "Master": master.address, "MasterPort": master.port})
		r.start(n.host, n.port, testbed.Command{Args: []string{"redis-server", conf, "--sentinel"}})
	}
}

// failOver kills the master. The replica must have what the master had taken,
// become the master, and give it to a new replica.
func failOver(r *run) {
	master, replica := r.pair()
	seen := r.sentinels()[0]
	r.use("redis-benchmark", "-h", master.address, "-p", strconv.Itoa(master.port), "-q", "-t", "set",
		"-r", "10000", "-c", "8", "-d", "1000", "-n", "50000")
	want := r.ask(master, "dbsize")
	info := regexp.MustCompile(`process_id:(\d+)`).FindStringSubmatch(r.ask(master, "info", "server"))
	r.await("the replica", func() bool { return r.ask(replica, "dbsize") == want })
	r.await("the sentinels", func() bool {
		out := r.ask(seen, "sentinel", "master", "main")
		return regexp.MustCompile(`num-slaves\s+1\s`).MatchString(out) && regexp.MustCompile(`num-other-sentinels\s+2\s`).MatchString(out)
	})
	digest := r.ask(replica, "debug", "digest")
	pid, err := strconv.Atoi(info[1])
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		r.Fatal(err)
	}
	r.await("another master", func() bool {
		return strings.Contains(r.ask(seen, "sentinel", "get-master-addr-by-name", "main"), strconv.Itoa(replica.port))
	})
	r.await("its role", func() bool { return strings.HasPrefix(r.ask(replica, "role"), "master") })
	r.redis(master, "--replicaof", replica.address, strconv.Itoa(replica.port), "--enable-debug-command", "yes")
	r.await("the new replica", func() bool { return r.ask(master, "dbsize") == want })
	if got := r.ask(master, "debug", "digest"); got != digest {
		r.Errorf("the new replica has other contents: %s, want %s", got, digest)
	}
}
