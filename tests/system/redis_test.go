// SPDX-License-Identifier: Apache-2.0

package system

import (
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// verified is what tests/progs/verify.c prints.
type verified struct {
	Ops        uint64  `json:"ops"`
	Bytes      uint64  `json:"bytes"`
	Errors     uint64  `json:"errors"`
	Mismatches uint64  `json:"mismatches"`
	Seconds    float64 `json:"seconds"`
}

// verify runs the verifying client on host A against Redis on host B.
func verify(t *testing.T, tb *testbed.Testbed, c testbed.Command, seconds string, more ...string) verified {
	t.Helper()
	c.Args = append([]string{program(t, "verify"), "--host", testbed.WireB, "--port", "6379",
		"--connections", "50", "--seconds", seconds}, more...)
	c.CPUs = []int{clientCPU}
	var v verified
	runJSON(t, tb.A, c, time.Minute, &v)
	t.Logf("%d commands, %d MB verified in %.1f s", v.Ops, v.Bytes>>20, v.Seconds)
	if v.Errors != 0 || v.Mismatches != 0 || v.Ops < 100 {
		t.Errorf("verify: %+v", v)
	}
	return v
}

// Random values from one byte to a megabyte, pipelined, over 50 connections,
// with each end on either path: not a byte may differ.
func TestRedisEveryCombination(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	combinations(t, func(t *testing.T, client, server bool) {
		a, b := stats(t, tb.A), stats(t, tb.B)
		startRedis(t, tb, server)
		v := verify(t, tb, testbed.Command{Etran: client}, "6")

		checkPath(t, tb.A, client, a)
		checkPath(t, tb.B, server, b)
		if v.Bytes == 0 {
			t.Error("nothing was verified")
		}
	})
}

// checkPath makes sure that a host's program used the path it should have. The
// share is below what a benchmark reaches: a peer that never pauses in sending
// megabytes leaves few quiet moments to switch in.
func checkPath(t *testing.T, h *testbed.Host, etran bool, before *adminapi.Stats) {
	t.Helper()
	moved, rest := fast(t, h, before), kernel(t, h, before)
	if !etran {
		if moved != 0 {
			t.Errorf("host %s moved %d bytes on the fast path without eTran", h.Name, moved)
		}
		return
	}
	share := float64(moved) / float64(moved+rest)
	t.Logf("host %s: %.1f %% of %d MB on the fast path", h.Name, 100*share, (moved+rest)>>20)
	if share < 0.5 {
		t.Errorf("host %s moved only %d of %d bytes on the fast path", h.Name, moved, moved+rest)
	}
}

// An unprivileged program gets the fast path too.
func TestUnprivilegedProgram(t *testing.T) {
	const nobody = 65534
	tb := testbed.ForTest(t, testbed.Options{})
	before := stats(t, tb.A)
	startRedis(t, tb, true)
	verify(t, tb, testbed.Command{Etran: true, UID: nobody}, "3")
	checkPath(t, tb.A, true, before)
}
