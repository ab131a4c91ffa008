// SPDX-License-Identifier: Apache-2.0

package system

import (
	"testing"
	"time"

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
func verify(t *testing.T, tb *testbed.Testbed, c testbed.Command, seconds string) verified {
	t.Helper()
	c.Args = []string{program(t, "verify"), "--host", testbed.WireB, "--port", "6379",
		"--connections", "50", "--seconds", seconds}
	c.CPUs = []int{clientCPU}
	var v verified
	runJSON(t, tb.A, c, time.Minute, &v)
	t.Logf("%d commands, %d MB verified in %.1f s", v.Ops, v.Bytes>>20, v.Seconds)
	if v.Errors != 0 || v.Mismatches != 0 || v.Ops < 1000 {
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

		for _, end := range []struct {
			host   *testbed.Host
			etran  bool
			before uint64
			fast   uint64
		}{
			{tb.A, client, 0, fast(t, tb.A, a)},
			{tb.B, server, 0, fast(t, tb.B, b)},
		} {
			if !end.etran && end.fast != 0 {
				t.Errorf("host %s moved %d bytes on the fast path without eTran", end.host.Name, end.fast)
			}
			if end.etran && float64(end.fast) < 0.9*float64(v.Bytes) {
				t.Errorf("host %s moved only %d of %d bytes on the fast path", end.host.Name, end.fast, v.Bytes)
			}
		}
	})
}

// An unprivileged program gets the fast path too.
func TestUnprivilegedProgram(t *testing.T) {
	const nobody = 65534
	tb := testbed.ForTest(t, testbed.Options{})
	before := stats(t, tb.A)
	startRedis(t, tb, true)
	v := verify(t, tb, testbed.Command{Etran: true, UID: nobody}, "3")
	if moved := fast(t, tb.A, before); float64(moved) < 0.9*float64(v.Bytes) {
		t.Errorf("uid %d moved only %d of %d bytes on the fast path", nobody, moved, v.Bytes)
	}
}
