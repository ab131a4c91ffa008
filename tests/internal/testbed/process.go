// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// process names a process so that its number can't come to mean another one:
// by number and start time.
type process struct {
	pid   int
	start uint64 // clock ticks after boot
}

// processOf names the process that has a number now.
func processOf(pid int) (process, error) {
	start, _, err := readStat(pid)
	if err != nil {
		return process{}, err
	}
	return process{pid: pid, start: start}, nil
}

// readStat reads a process's start time and state from /proc/PID/stat.
func readStat(pid int) (start uint64, state byte, err error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	// The second field is the command in parentheses and may hold anything.
	// proc(5) numbers fields from 1: state is field 3, start time field 22.
	_, rest, ok := bytes.Cut(text[bytes.LastIndexByte(text, ')')+1:], []byte(" "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, 0, fmt.Errorf("looking at process %d: %s reads %q", pid, path, text)
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("start time in %s: %w", path, err)
	}
	return start, fields[0][0], nil
}

// alive says whether the process runs. A zombie does not.
func (p process) alive() bool {
	start, state, err := readStat(p.pid)
	return err == nil && start == p.start && state != 'Z' && state != 'X'
}

func (p process) save(path string) error {
	err := os.WriteFile(path, fmt.Appendf(nil, "%d %d\n", p.pid, p.start), 0o644)
	if err != nil {
		return fmt.Errorf("recording process %d: %w", p.pid, err)
	}
	return nil
}

func loadProcess(path string) (process, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return process{}, fmt.Errorf("reading a process's record: %w", err)
	}
	var p process
	if _, err := fmt.Sscan(string(text), &p.pid, &p.start); err != nil {
		return process{}, fmt.Errorf("process record %s reads %q: %w", path, text, err)
	}
	return p, nil
}

// isKeeper says whether the process is an etrand's keeper.
func (p process) isKeeper() bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	return err == nil && bytes.HasPrefix(line, []byte("etrand-keeper\x00"))
}

// processesIn lists the processes in some network namespaces that are wanted,
// except this one. It finds what a record would miss: children of
// programs, and programs that made themselves daemons.
func processesIn(spaces []string, wanted func(process) bool) ([]process, error) {
	var in []os.FileInfo
	for _, path := range spaces {
		switch info, err := os.Stat(path); {
		case err == nil:
			in = append(in, info)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("looking at a network namespace: %w", err)
		}
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(in) == 0 {
		return nil, err
	}
	var found []process
	for _, dir := range dirs {
		// Errors below mean that the process has ended.
		info, err := os.Stat(filepath.Join(dir, "ns/net"))
		inside := func(space os.FileInfo) bool { return os.SameFile(space, info) }
		if err != nil || !slices.ContainsFunc(in, inside) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if p, err := processOf(pid); err == nil && wanted(p) {
			found = append(found, p)
		}
	}
	return found, nil
}

// endProcesses sends processes a signal, gives them time to end, kills the
// rest, and says how many that were.
func endProcesses(procs []process, s syscall.Signal, patience time.Duration) (killed int, err error) {
	send := func(s syscall.Signal) error {
		for _, p := range procs {
			if !p.alive() {
				continue
			}
			if err := syscall.Kill(p.pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("sending %v to process %d: %w", s, p.pid, err)
			}
		}
		return nil
	}
	if err := send(s); err != nil {
		return 0, err
	}
	if remaining := awaitEnd(procs, patience); len(remaining) > 0 {
		killed = len(remaining)
		procs = remaining
		if err := send(syscall.SIGKILL); err != nil {
			return killed, err
		}
		// Only a process stuck in the kernel outlasts this.
		if left := awaitEnd(procs, 5*time.Second); len(left) > 0 {
			return killed, fmt.Errorf("process %d does not die of SIGKILL", left[0].pid)
		}
	}
	return killed, nil
}

// awaitEnd waits for processes to end and returns those that don't in time.
func awaitEnd(procs []process, patience time.Duration) []process {
	deadline := time.Now().Add(patience)
	for {
		procs = slices.DeleteFunc(slices.Clone(procs), func(p process) bool { return !p.alive() })
		if len(procs) == 0 || time.Now().After(deadline) {
			return procs
		}
		time.Sleep(5 * time.Millisecond)
	}
}
