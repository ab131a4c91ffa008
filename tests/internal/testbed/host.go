// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
)

// Host is one of a testbed's two hosts.
type Host struct {
	// Name is "A" or "B".
	Name string
	// Wire and Plain are the host's addresses on the two wires.
	Wire, Plain string
	// RunDir is the run directory of the host's daemon.
	RunDir string

	tb     *Testbed
	worker *namespaceWorker
}

// openHost makes a handle of a host whose namespace exists.
func openHost(tb *Testbed, name, wire, plain string) (*Host, error) {
	worker, err := enterNamespace(tb.paths.netns(name))
	if err != nil {
		return nil, fmt.Errorf("opening host %s of testbed %q (is it up?): %w", name, tb.opts.Name, err)
	}
	return &Host{
		Name: name, Wire: wire, Plain: plain,
		RunDir: tb.paths.runDir(name),
		tb:     tb, worker: worker,
	}, nil
}

// Do runs f on a thread in the host's network namespace. Sockets that f opens
// belong to the host wherever they are used later. f must not block, as it
// would keep others from using the host.
func (h *Host) Do(f func() error) error { return h.worker.do(f) }

func (h *Host) leave() error { return h.worker.leave() }

// Admin returns a client of the host's daemon; the caller closes it.
func (h *Host) Admin() *adminapi.Client { return adminapi.NewClient(h.RunDir) }

// LogFile is the path of the daemon's log.
func (h *Host) LogFile() string { return filepath.Join(h.RunDir, "etrand.log") }

// outputFile is where the daemon's standard output and error go: what it says
// before it has opened its log, and what the Go runtime prints when it dies.
func (h *Host) outputFile() string { return filepath.Join(h.RunDir, "etrand.out") }

// daemonFile records the daemon's process.
func (h *Host) daemonFile() string { return daemonFile(h.RunDir) }

func daemonFile(runDir string) string { return filepath.Join(runDir, "etrand.proc") }

// Time limits for the daemon. They are generous because a machine whose cores
// all run spinning programs lets others wait for long.
const (
	daemonStartTimeout = 20 * time.Second
	daemonStopTimeout  = 10 * time.Second
	daemonPoll         = 20 * time.Millisecond
)

// Daemon says how an etrand differs from the testbed's usual one.
type Daemon struct {
	// Path of the program; the one of the build directory if empty.
	Path string
	// Env are further environment variables, "NAME=value".
	Env []string
}

// StartDaemon starts the host's etrand and waits until it answers. Tests use
// it after StopDaemon.
func (h *Host) StartDaemon(ctx context.Context) error { return h.StartOtherDaemon(ctx, Daemon{}) }

// StartOtherDaemon is StartDaemon for a daemon that is not the usual one.
func (h *Host) StartOtherDaemon(ctx context.Context, d Daemon) error {
	if d.Path == "" {
		d.Path = filepath.Join(h.tb.opts.BuildDir, "etrand")
	}
	if err := os.MkdirAll(h.RunDir, 0o755); err != nil {
		return fmt.Errorf("making the run directory: %w", err)
	}
	out, err := os.OpenFile(h.outputFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the file for etrand's output: %w", err)
	}
	defer out.Close()

	cmd := exec.Command(d.Path,
		"--interface", WireInterface,
		"--run-dir", h.RunDir,
		"--pin-dir", h.tb.paths.pinDir(h.Name),
		"--log-file", h.LogFile())
	if h.tb.opts.Middlebox {
		cmd.Args = append(cmd.Args, "--config", h.tb.paths.verifyConfig())
	}
	cmd.Args = append(cmd.Args, h.tb.opts.DaemonArgs...)
	cmd.Env = append(os.Environ(), d.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	// A session of its own: the daemon outlives "testbed up", and a ^C in
	// the terminal is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := h.Do(cmd.Start); err != nil {
		return fmt.Errorf("starting etrand on host %s: %w", h.Name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	proc, err := processOf(cmd.Process.Pid)
	if err == nil {
		err = proc.save(h.daemonFile())
	}
	if err == nil {
		err = h.awaitDaemon(ctx, ended)
	}
	if err != nil {
		_ = cmd.Process.Kill() // fails only if it is dead
		return fmt.Errorf("starting etrand on host %s: %w", h.Name, err)
	}
	return nil
}

// awaitDaemon waits until the daemon answers, ends, or takes too long.
func (h *Host) awaitDaemon(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, daemonStartTimeout)
	defer cancel()
	client := h.Admin()
	defer client.Close()
	for {
		_, err := client.Status(ctx)
		if err == nil {
			return nil
		}
		select {
		case exit := <-ended:
			return fmt.Errorf("it ended at once (%v); it said:\n%s", exit, h.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w; it said:\n%s", err, h.lastWords())
		case <-time.After(daemonPoll):
		}
	}
}

// lastWords returns the ends of the daemon's output and log for an error.
func (h *Host) lastWords() string {
	const tail = 2000
	var words string
	for _, path := range []string{h.outputFile(), h.LogFile()} {
		text, err := os.ReadFile(path)
		if err != nil || len(text) == 0 {
			continue
		}
		if len(text) > tail {
			text = text[len(text)-tail:]
		}
		words += fmt.Sprintf("--- %s\n%s\n", path, text)
	}
	if words == "" {
		return "(nothing)"
	}
	return words
}

// StopDaemon sends the host's daemon a signal and waits for its end. A daemon
// that doesn't end in time is killed, and that is an error.
func (h *Host) StopDaemon(s syscall.Signal) error {
	proc, err := loadProcess(h.daemonFile())
	if err != nil {
		return fmt.Errorf("stopping etrand on host %s: %w", h.Name, err)
	}
	killed, err := endProcesses([]process{proc}, s, daemonStopTimeout)
	if err != nil {
		return fmt.Errorf("stopping etrand on host %s: %w", h.Name, err)
	}
	if killed > 0 && s != syscall.SIGKILL {
		return fmt.Errorf("etrand on host %s did not end within %v of %v and was killed", h.Name, daemonStopTimeout, s)
	}
	return nil
}

// PinDir is where the host's daemon pins.
func (h *Host) PinDir() string { return h.tb.paths.pinDir(h.Name) }

// DaemonPid is the process of the host's daemon, 0 if it does not run.
func (h *Host) DaemonPid() int {
	proc, err := loadProcess(h.daemonFile())
	if err != nil || !proc.alive() {
		return 0
	}
	return proc.pid
}

// KeeperPids are the processes that keep what outlives the host's daemon.
func (h *Host) KeeperPids() ([]int, error) {
	procs, err := processesIn([]string{h.tb.paths.netns(h.Name)}, process.isKeeper)
	var pids []int
	for _, p := range procs {
		pids = append(pids, p.pid)
	}
	return pids, err
}

// appStopTimeout is how long programs on the hosts may take to end before
// they are killed.
const appStopTimeout = time.Second

// clear removes whatever exists of a testbed: programs first, then daemons,
// so that a daemon sees its programs die while it can still act on it.
func clear(p paths) error {
	var daemons []process
	var spaces []string
	for _, host := range []string{"A", "B", middleName} {
		spaces = append(spaces, p.netns(host))
		if proc, err := loadProcess(daemonFile(p.runDir(host))); err == nil {
			daemons = append(daemons, proc)
		}
	}
	apps, err := processesIn(spaces, func(p process) bool { return !p.isKeeper() && !slices.Contains(daemons, p) })
	if err != nil {
		return err
	}
	if _, err := endProcesses(apps, syscall.SIGTERM, appStopTimeout); err != nil {
		return err
	}
	if _, err := endProcesses(daemons, syscall.SIGTERM, daemonStopTimeout); err != nil {
		return err
	}
	// A daemon that was killed leaves its keeper.
	keepers, err := processesIn(spaces, process.isKeeper)
	if err != nil {
		return err
	}
	if _, err := endProcesses(keepers, syscall.SIGKILL, daemonStopTimeout); err != nil {
		return err
	}
	var errs []error
	for _, space := range spaces {
		errs = append(errs, removeNamespace(space))
	}
	errs = append(errs, os.RemoveAll(p.pins), os.RemoveAll(p.state))
	return errors.Join(errs...)
}
