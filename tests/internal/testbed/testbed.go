// SPDX-License-Identifier: Apache-2.0

// Package testbed makes two hosts, A and B, on one machine: network
// namespaces joined by two veth wires, with an etrand in each.
//
//	        A                          B
//	wire    10.77.0.1/24 ─────────── 10.77.0.2/24   eTran's
//	plain   10.78.0.1/24 ─────────── 10.78.0.2/24   never sees XDP
//
// The wire can lead through a third namespace, M, with a middlebox that makes
// faults.
//
// Only the network namespace differs between the hosts; files, processes and
// /sys/fs/bpf are the machine's. That is why the hosts are entered with setns
// and not with "ip netns exec", which also gives its command a new mount
// namespace with another /sys.
//
// A testbed has a name. Testbeds of different names do not disturb each
// other (except by the CPU time they take), so that a test run and somebody's
// hand-made testbed can coexist; a lock keeps two users of one name apart.
package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/etran-go/etran/tests/middlebox"
)

// DefaultName is the name of the testbed that the command line tool makes.
const DefaultName = "etran"

// The hosts' addresses on the two wires.
const (
	WireA  = "10.77.0.1"
	WireB  = "10.77.0.2"
	PlainA = "10.78.0.1"
	PlainB = "10.78.0.2"
)

// The interfaces' names, the same on both hosts.
const (
	WireInterface  = "wire"
	PlainInterface = "plain"
)

// Options say what New builds. The zero value is usable.
type Options struct {
	// Name tells testbeds apart; DefaultName if empty.
	Name string
	// MTU of both wires; 1500 if 0.
	MTU int
	// Queues is the number of receive and transmit queues of each end of
	// each wire; 1 if 0.
	Queues int
	// NoDaemon leaves the hosts without an etrand.
	NoDaemon bool
	// Middlebox lets the wire lead through a middlebox, a good one until
	// [Testbed.SetFaults] is called. The hosts then send frames with whole
	// checksums, and their daemons verify them. It lasts as long as this
	// process.
	Middlebox bool
	// DaemonArgs are further arguments of both daemons.
	DaemonArgs []string
	// BuildDir is where etrand, etran and libetran.so are. If empty, the
	// directory build at the root of the module around the working
	// directory.
	BuildDir string
	// Log receives a line for each thing worth telling; nil discards them.
	Log io.Writer
}

// Testbed is a handle of a testbed that exists.
type Testbed struct {
	// A and B are the hosts.
	A, B *Host

	opts  Options
	paths paths
	lock  *os.File // nil for a handle made by Open

	// The middlebox and a thread in its namespace; nil if there is none.
	middle       *middlebox.Middlebox
	middleWorker *namespaceWorker

	closeOnce sync.Once
	closeErr  error
	signals   chan os.Signal
	stop      chan struct{} // closed when the signal watcher must end
}

// New builds a testbed after clearing away what is left of an earlier one of
// the same name. It waits for a testbed of that name that is in use.
//
// Until Close or Detach, SIGINT and SIGTERM close the testbed before they
// end this process. (A SIGKILL can't; the next New cleans up.)
func New(ctx context.Context, opts Options) (*Testbed, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("making network namespaces for the testbed: only root can")
	}
	lock, err := acquireLock(ctx, opts.Name, opts.Log)
	if err != nil {
		return nil, err
	}
	tb := &Testbed{opts: opts, paths: pathsOf(opts.Name), lock: lock}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	built := make(chan struct{})
	tb.watchSignals(cancel, built)
	err = tb.build(ctx)
	close(built)
	if err != nil {
		return nil, errors.Join(err, tb.Close())
	}
	return tb, nil
}

// Open returns a handle of the testbed that exists under a name. Its Close
// leaves the testbed as it is.
func Open(opts Options) (*Testbed, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	tb := &Testbed{opts: opts, paths: pathsOf(opts.Name)}
	if err := tb.openHosts(); err != nil {
		return nil, errors.Join(err, tb.Close())
	}
	return tb, nil
}

// Down removes the testbed of a name and everything that runs on its hosts.
// It succeeds if there is none.
func Down(ctx context.Context, name string, log io.Writer) error {
	if log == nil {
		log = io.Discard
	}
	lock, err := acquireLock(ctx, name, log)
	if err != nil {
		return err
	}
	defer lock.Close()
	return clear(pathsOf(name))
}

// withDefaults fills in what the caller left out.
func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if strings.ContainsAny(o.Name, "/.") {
		return o, fmt.Errorf("testbed name %q: it becomes part of file names; use letters and dashes", o.Name)
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.BuildDir == "" {
		root, err := moduleRoot()
		if err != nil {
			return o, err
		}
		o.BuildDir = filepath.Join(root, "build")
	}
	abs, err := filepath.Abs(o.BuildDir)
	if err != nil {
		return o, fmt.Errorf("finding the build directory %s: %w", o.BuildDir, err)
	}
	o.BuildDir = abs
	return o, nil
}

// moduleRoot finds the directory of go.mod at or above the working directory.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the working directory: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("finding build/: no go.mod at or above %s", start)
		}
	}
}

// build clears the old testbed and makes the new one, step by step.
func (tb *Testbed) build(ctx context.Context) error {
	if err := clear(tb.paths); err != nil {
		return fmt.Errorf("clearing the old testbed: %w", err)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(tb.paths.state, 0o755); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	if err := makeHosts(tb.paths, tb.opts.Middlebox); err != nil {
		return err
	}
	if err := tb.openHosts(); err != nil {
		return err
	}
	if err := tb.joinHosts(ctx); err != nil {
		return err
	}
	if tb.opts.Middlebox {
		if err := tb.writeVerifyConfig(); err != nil {
			return err
		}
	}
	if tb.opts.NoDaemon {
		return nil
	}
	if err := ensureBPFFS(); err != nil {
		return err
	}
	for _, h := range tb.hosts() {
		if err := h.StartDaemon(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (tb *Testbed) openHosts() error {
	var err error
	if tb.A, err = openHost(tb, "A", WireA, PlainA); err != nil {
		return err
	}
	tb.B, err = openHost(tb, "B", WireB, PlainB)
	return err
}

// hosts lists the hosts that are open.
func (tb *Testbed) hosts() []*Host {
	var open []*Host
	for _, h := range []*Host{tb.A, tb.B} {
		if h != nil {
			open = append(open, h)
		}
	}
	return open
}

// Host returns the host of a name.
func (tb *Testbed) Host(name string) (*Host, error) {
	for _, h := range tb.hosts() {
		if strings.EqualFold(h.Name, name) {
			return h, nil
		}
	}
	return nil, fmt.Errorf("host %q: the testbed's hosts are A and B", name)
}

// Close removes a testbed made by New, with everything that runs on its
// hosts. It may be called more than once and concurrently.
func (tb *Testbed) Close() error {
	tb.closeOnce.Do(func() { tb.closeErr = tb.close(true) })
	return tb.closeErr
}

// Detach gives up the handle and leaves the testbed to whoever opens it next.
func (tb *Testbed) Detach() error {
	tb.closeOnce.Do(func() { tb.closeErr = tb.close(false) })
	return tb.closeErr
}

func (tb *Testbed) close(remove bool) error {
	var errs []error
	// The order matters: threads of this process leave the namespaces
	// before the namespaces go.
	for _, h := range tb.hosts() {
		errs = append(errs, h.leave())
	}
	errs = append(errs, tb.closeMiddlebox())
	if tb.lock != nil {
		if remove {
			errs = append(errs, clear(tb.paths))
		}
		errs = append(errs, tb.lock.Close())
		signal.Stop(tb.signals)
		close(tb.stop)
	}
	return errors.Join(errs...)
}

// watchSignals closes the testbed when the process is interrupted, and then
// lets the signal do what it does by default. While the testbed is being
// built, it makes the builder stop first.
func (tb *Testbed) watchSignals(cancelBuild context.CancelCauseFunc, built <-chan struct{}) {
	tb.signals = make(chan os.Signal, 1)
	tb.stop = make(chan struct{})
	signal.Notify(tb.signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case <-tb.stop:
		case s := <-tb.signals:
			fmt.Fprintf(tb.opts.Log, "testbed: %v: cleaning up\n", s)
			cancelBuild(fmt.Errorf("interrupted by signal %v", s))
			<-built
			if err := tb.Close(); err != nil {
				fmt.Fprintf(os.Stderr, "testbed: cleaning up after %v: %v\n", s, err)
			}
			signal.Reset(s)
			// Sending a signal to oneself fails only for a bad number.
			_ = syscall.Kill(os.Getpid(), s.(syscall.Signal))
		}
	}()
}

// lockPoll is how often a busy lock is tried again.
const lockPoll = 100 * time.Millisecond

// acquireLock takes the lock of a testbed's name. The lock is a file that the
// kernel unlocks when its holder dies.
func acquireLock(ctx context.Context, name string, log io.Writer) (*os.File, error) {
	path := pathsOf(name).lock
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the testbed's lock: %w", err)
	}
	for told := false; ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if !told {
			fmt.Fprintf(log, "testbed: waiting for another user of testbed %q (lslocks %s tells who)\n", name, path)
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for the testbed's lock %s: %w", path, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}
