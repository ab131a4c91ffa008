// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// audit ends what the application has closed without the library's knowledge.
func (a *App) audit() {
	f := files{pid: a.peer.Pid}
	for _, s := range a.activeSlots() {
		s.Audit(f.has)
	}
}

// files are the descriptors of a process.
type files struct {
	pid     int
	numbers map[uint64]int // by the socket's inode; nil: not read yet
	unknown bool           // they cannot be read
}

// has says under which number the process has a file of ours. Comparing is one
// system call; only when the number is not what it was, all are read. What
// cannot be found out counts as held.
func (f *files) has(fd, last int) (int, bool) {
	if sameFile(f.pid, last, fd) {
		return last, true
	}
	if f.numbers == nil {
		f.read()
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || f.unknown {
		return last, true
	}
	number, ok := f.numbers[stat.Ino]
	return number, ok
}

const kcmpFile = 0 // KCMP_FILE

var self = os.Getpid() // a system call each time

func sameFile(pid, number, fd int) bool {
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(self), kcmpFile,
		uintptr(number), uintptr(fd), 0)
	return errno == 0 && r == 0
}

// read lists the sockets of the process. One whose first thread has ended shows
// nothing there, but its other threads do.
func (f *files) read() {
	f.numbers = map[uint64]int{}
	threads := threadsOf(f.pid)
	for _, t := range threads {
		if t.state == 'Z' || t.state == 'X' {
			continue
		}
		dir := fmt.Sprintf("/proc/%d/task/%d/fd", f.pid, t.id)
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) == 0 {
			break // it is ending: awaitDeath's business
		}
		for _, e := range entries {
			f.add(dir, e.Name())
		}
		return
	}
	f.unknown = true
}

func (f *files) add(dir, name string) {
	number, err := strconv.Atoi(name)
	if err != nil {
		return
	}
	target, err := os.Readlink(dir + "/" + name)
	text, isSocket := strings.CutPrefix(target, "socket:[")
	if err != nil || !isSocket {
		return // closed since, or something else
	}
	if inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64); err == nil {
		f.numbers[inode] = number
	}
}

type thread struct {
	id    int
	state byte // as /proc/PID/stat has it
}

// threadsOf lists the threads of a process; none if it is gone.
func threadsOf(pid int) []thread {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var list []thread
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(dir + "/" + e.Name() + "/stat")
		// The second field is the command in parentheses: it may hold anything.
		_, rest, ok := bytes.Cut(text[bytes.LastIndexByte(text, ')')+1:], []byte(" "))
		if err == nil && ok && len(rest) > 0 {
			list = append(list, thread{id, rest[0]})
		}
	}
	return list
}

// stoppedMemory is how long an answer of Stopped holds: many slots ask at once.
const stoppedMemory = 10 * time.Millisecond

// Stopped says whether every thread of the program is stopped or traced.
func (a *App) Stopped() bool {
	a.stoppedMu.Lock()
	defer a.stoppedMu.Unlock()
	if time.Since(a.stoppedAt) < stoppedMemory {
		return a.stopped
	}
	threads := threadsOf(a.peer.Pid)
	a.stopped = len(threads) > 0
	for _, t := range threads {
		// A zombie answers no more than a stopped thread does.
		if !strings.ContainsRune("TtZX", rune(t.state)) {
			a.stopped = false
		}
	}
	a.stoppedAt = time.Now()
	return a.stopped
}
