// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"strconv"

	"github.com/etran-go/etran/tests/internal/testbed"
)

const port = "7777"

var languages = []program{
	{name: "memcached", serve: memcached, use: useMemcached, client: fast, server: fast},
	{name: "python-asyncio", serve: python("asyncio"), use: echo, client: fast, server: fast},
	{name: "python-threads", serve: python("threads"), use: echo, client: fast, server: fast},
	{name: "python-forks", serve: python("forks"), use: echo, client: fast, server: fast},
	{name: "node", serve: node, use: useNode, client: fast, server: fast},
	{name: "java-nio", serve: java, use: echo, client: fast, server: fast},
}

func memcached(r *run) {
	r.serve(7777, "memcached", "-u", "root", "-t", "4", "-l", testbed.WireB, "-p", port, "-U", "0", "-I", "8m", "-m", "128")
}

func useMemcached(r *run) {
	for _, protocol := range []string{"ascii", "binary"} {
		r.use("python3", r.script("memcached.py"), testbed.WireB, port, protocol, "4", strconv.Itoa(testbed.Span(40, 500)))
	}
}

func python(kind string) func(*run) {
	return func(r *run) { r.serve(7777, "python3", r.script("echo.py"), kind, testbed.WireB, port) }
}

// echo talks to any of the echo servers.
func echo(r *run) {
	r.use("python3", r.script("echo.py"), "client", testbed.WireB, port, "4", strconv.Itoa(testbed.Span(40, 500)))
}

func node(r *run) { r.serve(7777, "node", r.script("node-server.js"), testbed.WireB, port) }

func useNode(r *run) {
	r.use("node", r.script("node-client.js"), testbed.WireB, port, "8", strconv.Itoa(testbed.Span(40, 600)))
}

// java serves on sockets of IPv4: those of IPv6, which it uses by default for
// both, stay on the kernel.
func java(r *run) {
	if r.once("Echo.class") {
		r.on(r.tb.B, testbed.Command{Args: []string{"javac", "-d", r.dir, r.script("Echo.java")}})
	}
	r.serve(7777, "java", "-Djava.net.preferIPv4Stack=true", "-Xint", "-cp", r.dir, "Echo", testbed.WireB, port)
}
