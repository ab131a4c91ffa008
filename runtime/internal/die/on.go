// SPDX-License-Identifier: Apache-2.0

//go:build etrantest

package die

import (
	"os"
	"syscall"
)

// Env names the point at which the process shall die.
const Env = "ETRAN_TEST_DIE_AT"

var point = os.Getenv(Env)

// At ends the process as SIGKILL does, if the environment names this point.
func At(name string) {
	if point == "" || name != point {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // cannot fail
	select {}
}
