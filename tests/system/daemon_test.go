// SPDX-License-Identifier: Apache-2.0

package system

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// clients asks Redis how many connections it has, over a plain one.
func clients(t *testing.T, tb *testbed.Testbed) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := tb.B.Output(ctx, testbed.Command{Args: []string{"redis-cli", "info", "clients"}})
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "connected_clients:"); ok {
			return n
		}
	}
	t.Fatalf("no connected_clients in %q", out)
	return ""
}

// The daemon of the server's host ends under load. After SIGTERM the
// connections go on in the kernel; after SIGKILL they go on where they are, and
// the next daemon has them. Either way not a byte is lost, and the program does
// not notice.
func TestDaemonEndsUnderLoad(t *testing.T) {
	if _, err := exec.LookPath("redis-cli"); err != nil {
		t.Fatal(err)
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			tb := testbed.ForTest(t, testbed.Options{})
			startRedis(t, tb, true)
			before := stats(t, tb.B)
			time.AfterFunc(2*time.Second, func() {
				if fast(t, tb.B, before) == 0 {
					t.Error("the load did not use the fast path")
				}
				if err := tb.B.StopDaemon(signal); err != nil {
					t.Errorf("ending the daemon: %v", err)
				}
				if signal == syscall.SIGKILL {
					if err := tb.B.StartDaemon(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
			verify(t, tb, testbed.Command{Etran: true}, "5")
			if signal == syscall.SIGKILL {
				if got := stats(t, tb.B).Adopted; got.Conns == 0 || got.Resumed != 1 || len(got.Lost) != 0 {
					t.Errorf("adopted %+v", got)
				}
			}
			if n := clients(t, tb); n != "1" {
				t.Errorf("Redis still has %s connections", n)
			}
		})
	}
}
