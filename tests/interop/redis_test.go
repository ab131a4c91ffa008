// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// Host A's clients also talk to host A's node, on the kernel's path.
var redises = []program{
	{name: "redis-cluster", serve: cluster, use: useCluster, client: bulk, server: fast},
}

// node is a Redis on a host.
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

func cluster(r *run) {
	create := []string{"redis-cli", "--cluster", "create"}
	for _, n := range r.nodes() {
		r.redis(n, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
		create = append(create, n.String())
	}
	r.says(r.use(append(create, "--cluster-yes")...), "All 16384 slots covered")
	for _, n := range r.nodes() {
		r.await("the cluster", func() bool {
			out := r.use("redis-cli", "-h", n.address, "-p", strconv.Itoa(n.port), "cluster", "info")
			return strings.Contains(out, "cluster_state:ok")
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
