// SPDX-License-Identifier: Apache-2.0

package sched

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// The test runs in a child, so that the other tests keep an ordinary priority.
func TestRaise(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("priorities need root")
	}
	const child = "ETRAN_TEST_SCHED"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=TestRaise$")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	if err := Raise(); err != nil {
		t.Fatal(err)
	}
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if prio, err := unix.Getpriority(unix.PRIO_PROCESS, 0); attr.Policy != roundRobin && (err != nil || prio != 40) {
		t.Errorf("policy %d, nice %d, %v", attr.Policy, 20-prio, err)
	}
}
