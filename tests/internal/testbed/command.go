// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to run on a host.
type Command struct {
	// Args is the program with its arguments; it is looked up in PATH.
	Args []string
	// Etran runs the program under libetran.so.
	Etran bool
	// CPUs that the program may use; all if empty.
	CPUs []int
	// Env are further environment variables, "NAME=value".
	Env []string
	// UID and group that the program gets; root's if 0.
	UID uint32

	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Process is a program that was started on a host. It dies with this process.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

// outputPatience bounds the wait for the end of a program's output: its
// children may keep the pipe open after it ended.
const outputPatience = 5 * time.Second

// Start starts a program.
func (h *Host) Start(c Command) (*Process, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("starting a program: no program given")
	}
	env, err := h.environment(c)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.WaitDelay = outputPatience
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.UID}
	}
	err = h.Do(func() error { return onCPUs(c.CPUs, cmd.Start) })
	if err != nil {
		return nil, fmt.Errorf("starting %s on host %s: %w", c.Args[0], h.Name, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Run runs a program to its end. If ctx ends first the program is stopped. An
// error carries what the program wrote to standard error, unless c says where
// that goes.
func (h *Host) Run(ctx context.Context, c Command) error {
	var stderr bytes.Buffer
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	p, err := h.Start(c)
	if err != nil {
		return err
	}
	if err := p.Wait(ctx); err != nil {
		return fmt.Errorf("%s on host %s: %w\n%s", strings.Join(c.Args, " "), h.Name, err, stderr.Bytes())
	}
	return nil
}

// Output is Run for a program whose standard output is wanted.
func (h *Host) Output(ctx context.Context, c Command) ([]byte, error) {
	var stdout bytes.Buffer
	c.Stdout = &stdout
	err := h.Run(ctx, c)
	return stdout.Bytes(), err
}

// Pid is the program's process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// PageFaults is how many pages the program, which has ended, had to be given.
func (p *Process) PageFaults() int64 {
	return p.cmd.ProcessState.SysUsage().(*syscall.Rusage).Minflt
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the program's end and returns how it ended, as exec.Cmd's
// Wait does. If ctx ends first the program is stopped.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		p.Stop()
		return context.Cause(ctx)
	}
}

// Signal sends the program a signal.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("sending %v to process %d: %w", s, p.Pid(), err)
	}
	return nil
}

// Stop ends the program, politely first, and waits for its end.
func (p *Process) Stop() {
	_ = p.Signal(syscall.SIGTERM) // fails only if it has ended
	select {
	case <-p.done:
	case <-time.After(appStopTimeout):
		_ = p.Signal(syscall.SIGKILL)
		<-p.done
	}
}

// Exec replaces this process by a program on the host: there is then no
// process between the caller and the program that signals would have to pass.
// Only Args, Etran, CPUs, Env and UID of c are used.
func (h *Host) Exec(c Command) error {
	if len(c.Args) == 0 {
		return errors.New("running a program: no program given")
	}
	env, err := h.environment(c)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(c.Args[0])
	if err != nil {
		return fmt.Errorf("running %s on host %s: %w", c.Args[0], h.Name, err)
	}
	// execve keeps what is the calling thread's own: namespace and CPUs.
	runtime.LockOSThread()
	if err := setns(h.tb.paths.netns(h.Name)); err != nil {
		return err
	}
	return onCPUs(c.CPUs, func() error {
		if err := becomeUser(int(c.UID)); err != nil {
			return err
		}
		err := syscall.Exec(path, c.Args, env)
		return fmt.Errorf("running %s on host %s: %w", path, h.Name, err)
	})
}

// environment is a program's environment: this process's, how to find the
// host's daemon, and what c adds.
func (h *Host) environment(c Command) ([]string, error) {
	env := append(os.Environ(), "ETRAN_RUN_DIR="+h.RunDir)
	if c.Etran {
		lib := filepath.Join(h.tb.opts.BuildDir, "libetran.so")
		if _, err := os.Stat(lib); err != nil {
			// The dynamic linker would only print a line and go on.
			return nil, fmt.Errorf("running %s under eTran: %w (build it with make)", c.Args[0], err)
		}
		env = append(env, "LD_PRELOAD="+lib)
	}
	return slices.Concat(env, c.Env), nil
}

// onCPUs runs f on the calling thread while that may use only some CPUs, which
// a process that f starts inherits. The caller has locked the thread.
func onCPUs(cpus []int, f func() error) error {
	if len(cpus) == 0 {
		return f()
	}
	var before, wanted unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("reading the thread's CPUs: %w", err)
	}
	for _, cpu := range cpus {
		wanted.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &wanted); err != nil {
		return fmt.Errorf("pinning to CPUs %v: %w", cpus, err)
	}
	err := f()
	if restore := unix.SchedSetaffinity(0, &before); restore != nil {
		err = errors.Join(err, fmt.Errorf("unpinning: %w", restore))
	}
	return err
}

// becomeUser gives up root for a user and the group of the same number.
func becomeUser(uid int) error {
	if uid == 0 {
		return nil
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("dropping groups: %w", err)
	}
	if err := syscall.Setgid(uid); err != nil {
		return fmt.Errorf("becoming group %d: %w", uid, err)
	}
	if err := syscall.Setuid(uid); err != nil {
		return fmt.Errorf("becoming user %d: %w", uid, err)
	}
	return nil
}
