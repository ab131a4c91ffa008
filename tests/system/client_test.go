// SPDX-License-Identifier: Apache-2.0

package system

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// patience bounds what a loaded machine may take for anything.
const patience = time.Minute

// A client is a connection of this process, a plain kernel socket on a host,
// to a Redis server.
type client struct {
	redis.Conn
	t   *testing.T
	net net.Conn
}

// connect connects from a host; the connection is closed when the test ends.
func connect(t *testing.T, h *testbed.Host, address string) (c net.Conn) {
	t.Helper()
	err := h.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", address, patience)
		return err
	})
	if err != nil {
		t.Fatalf("from host %s: %v", h.Name, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dial connects to a Redis.
func dial(t *testing.T, h *testbed.Host, address string) *client {
	t.Helper()
	c := connect(t, h, address)
	return &client{redis.NewConn(c, patience, patience), t, c}
}

// local is the connection's address here, which is remote to the server.
func (c *client) local() string { return c.net.LocalAddr().String() }

// setLinger makes Close reset the connection if seconds is 0.
func (c *client) setLinger(seconds int) {
	c.t.Helper()
	if err := c.net.(*net.TCPConn).SetLinger(seconds); err != nil {
		c.t.Fatal(err)
	}
}

// do sends a command whose reply must be no error.
func (c *client) do(command string, args ...any) any {
	c.t.Helper()
	reply, err := c.Do(command, args...)
	if err != nil {
		c.t.Fatalf("%s %.100v: %v", command, args, err)
	}
	return reply
}

// text is do for a reply that is a string.
func (c *client) text(command string, args ...any) string {
	c.t.Helper()
	s, err := redis.String(c.do(command, args...), nil)
	if err != nil {
		c.t.Fatalf("%s: %v", command, err)
	}
	return s
}

// paths are the ways of a host's connections, by the peer's address.
func paths(t *testing.T, h *testbed.Host) map[string]adminapi.Conn {
	t.Helper()
	list, err := h.Admin().SS(t.Context())
	if err != nil {
		t.Fatalf("connections of host %s: %v", h.Name, err)
	}
	byPeer := make(map[string]adminapi.Conn, len(list.Conns))
	for _, c := range list.Conns {
		byPeer[c.Remote] = c
	}
	return byPeer
}

// warm uses the connections until the server's host has them on the fast path.
func warm(t *testing.T, server *testbed.Host, clients ...*client) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		var late *client
		for _, c := range clients {
			for range 20 {
				c.do("PING")
			}
		}
		fast := paths(t, server)
		for _, c := range clients {
			if fast[c.local()].Path != adminapi.PathFast {
				late = c
			}
		}
		if late == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come to the fast path: %+v", late.local(), fast[late.local()])
		}
	}
}

// isFast makes sure that the connections are on the fast path now.
func isFast(t *testing.T, server *testbed.Host, clients ...*client) {
	t.Helper()
	fast := paths(t, server)
	for _, c := range clients {
		if fast[c.local()].Path != adminapi.PathFast {
			t.Errorf("%s is not on the fast path: %+v", c.local(), fast[c.local()])
		}
	}
}

// demoteAll asks for the demotion of every connection of a host. A program that
// is elsewhere does it when it comes back to its sockets.
func demoteAll(t *testing.T, h *testbed.Host) {
	t.Helper()
	if _, err := h.Admin().Demote(t.Context(), adminapi.SwitchRequest{All: true}); err != nil {
		t.Fatal(err)
	}
}

// awaitKernel waits until a host has the connection with a peer on the kernel.
func awaitKernel(t *testing.T, h *testbed.Host, peer string) {
	t.Helper()
	await(t, "host "+h.Name+" to demote "+peer, func() bool {
		return paths(t, h)[peer].Path == adminapi.PathKernel
	})
}

// run runs a program on a host to its end and returns what it printed.
func run(t *testing.T, h *testbed.Host, c testbed.Command) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := h.Output(ctx, c)
	if err != nil {
		t.Fatalf("%v\nstdout: %s", err, out)
	}
	return string(out)
}

// serve starts a Redis on a host, with options beyond the test's own.
func serve(t *testing.T, h *testbed.Host, etran bool, options ...string) *testbed.Process {
	t.Helper()
	args := []string{"redis-server", "--port", "6379", "--protected-mode", "no", "--save", "",
		"--enable-debug-command", "yes", "--dir", t.TempDir(), "--loglevel", "warning"}
	p := start(t, h, testbed.Command{Args: append(args, options...), Etran: etran, Stdout: t.Output()})
	awaitListener(t, h, "127.0.0.1:6379")
	return p
}

const serverAddress = testbed.WireB + ":6379"

// name numbers the keys of a test.
func name(prefix string, i int) string { return fmt.Sprintf("%s:%d", prefix, i) }
