// SPDX-License-Identifier: Apache-2.0

// Package sched gives the daemon precedence over the programs that it serves:
// a switch keeps a connection waiting, and with programs that spin on every
// core an ordinary thread waits for milliseconds.
package sched

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// SCHED_RR: threads of one priority take turns. Go's runtime spins while
	// another thread sweeps; with SCHED_FIFO that one might never run again, nor
	// anybody else on a machine whose processors all spin.
	roundRobin = 2
	priority   = 1 // the lowest that still goes first
	nice       = -20
)

// Raise makes all threads of the process real-time, or as nice as can be where
// that is not allowed. Threads made later inherit it from their makers.
func Raise() error {
	// Until a pass finds no new thread: those not raised yet make some, too.
	for raised := map[int]bool{}; ; {
		before := len(raised)
		if err := raiseAll(raised); err != nil {
			return err
		}
		if len(raised) == before {
			return nil
		}
	}
}

func raiseAll(raised map[int]bool) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("list own threads: %w", err)
	}
	var errs []error
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil || raised[tid] {
			continue
		}
		raised[tid] = true
		if err := raise(tid); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("raise priority of thread %d: %w", tid, err))
		}
	}
	return errors.Join(errs...)
}

func raise(tid int) error {
	attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: roundRobin, Priority: priority}
	err := unix.SchedSetAttr(tid, attr, 0)
	if errors.Is(err, unix.EPERM) {
		return unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
	}
	return err
}
