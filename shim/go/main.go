// SPDX-License-Identifier: Apache-2.0

// The Go side of libetran.so: it keeps the session with the daemon and drives
// the assist. It is built as a C archive, started late by shim/start.c, and
// always calls C on its own threads; nothing calls into it.
//
// It loads into every program that uses TCP, so it imports next to nothing. It
// must not open descriptors, which the program might close or be surprised by:
// no os, no timers (time.Sleep too) because they make the runtime open an epoll
// set. Nor may its loops allocate: the collector is off (see shim/start.c).
package main

// The functions of session.h are resolved when libetran.so is linked, not
// here; without the flag `go build ./...` could not link this package.

/*
#cgo CFLAGS: -I${SRCDIR}/..
#cgo LDFLAGS: -Wl,--unresolved-symbols=ignore-all
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "session.h"
*/
import "C"

import (
	"syscall"
	"unsafe"
)

const (
	defaultRunDir = "/run/etran"

	// Between attempts to reach a daemon: soon after a loss, when it is most
	// likely restarting, and seldom when there is none.
	minBackOff = 100_000 // microseconds
	maxBackOff = 5_000_000

	// A connection in the middle of a switch waits so long for another
	// daemon.
	patience = 10_000_000
)

func init() {
	C.et_go_ready()
	go guard(session)
	go guard(assist)
}

// guard keeps a panic from ending the program: without its Go side it simply
// stays, or goes back, on kernel TCP.
func guard(f func()) {
	defer func() { _ = recover() }()
	f()
}

// session connects to the daemon, handles its messages until the connection is
// lost, and begins again; for ever, unless the daemon refuses this program.
func session() {
	runDir, ok := syscall.Getenv("ETRAN_RUN_DIR")
	if !ok {
		runDir = defaultRunDir
	}
	dir := C.CString(runDir)
	defer C.free(unsafe.Pointer(dir))

	var alone C.useconds_t // since the last session, about
	for backOff := C.useconds_t(minBackOff); ; backOff = min(2*backOff, longest(alone)) {
		fd := C.et_session_open(dir)
		switch {
		case fd == -C.EACCES || fd == -C.EPERM:
			return
		case fd >= 0:
			for C.et_session_step(fd, -1) == 0 {
			}
			C.et_session_close(fd)
			backOff, alone = minBackOff, 0
		case alone >= patience:
			C.et_session_missed()
		}
		C.usleep(backOff)
		alone = min(alone+backOff, patience)
	}
}

// longest is the longest back-off: seconds would make a switch wait that a new
// daemon could end.
func longest(alone C.useconds_t) C.useconds_t {
	if alone < patience {
		return 2 * minBackOff
	}
	return maxBackOff
}

// assist looks after connections whose program is busy elsewhere.
func assist() { C.et_assist_run() }

func main() {}
