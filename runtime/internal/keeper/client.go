// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Client is the daemon's side. A nil *Client keeps nothing.
type Client struct {
	runDir string
	log    *slog.Logger

	mu     sync.Mutex
	fd     int
	pidfd  int // of the keeper's process, -1 if unknown
	closed bool
	// items are what the keeper has, for another one if it dies. The
	// descriptors are their owners', who delete the item before they close
	// them.
	items map[string]Item
	retry time.Time // after a start that failed
}

const (
	// A keeper that takes nothing for so long is stuck or stopped; another
	// one is started then.
	sendPatience  = 2 * time.Second
	startPause    = 5 * time.Second
	quitPatience  = 2 * time.Second
	sendBuffer    = 4 << 20
	listenBacklog = 8
)

// Connect reaches the keeper that an earlier daemon left in the run directory.
// It returns nil if there is none. The caller holds the run directory's lock.
func Connect(runDir string, log *slog.Logger) (*Client, []Item, error) {
	fd, err := dial(filepath.Join(runDir, SocketName))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	items, err := list(fd)
	if err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("ask the keeper of the last daemon for what it keeps: %w", err)
	}
	k := &Client{runDir: runDir, log: log, fd: fd, pidfd: -1, items: make(map[string]Item)}
	if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
		k.pidfd, _ = unix.PidfdOpen(int(cred.Pid), 0) // -1 if it has just died
	}
	go k.watch(fd)
	return k, items, nil
}

func dial(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("create the keeper's socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", path, err)
	}
	if !trusted(fd) {
		unix.Close(fd)
		return -1, fmt.Errorf("whoever listens on %s is not this user", path)
	}
	setPatience(fd, sendPatience)
	// More room than the default makes waiting for the keeper rarer.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer)
	return fd, nil
}

func list(fd int) (items []Item, err error) {
	tv := unix.NsecToTimeval(answerPatience.Nanoseconds())
	forever := unix.Timeval{}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			CloseAll(items)
		}
	}()
	if err := send(fd, opList, &Item{}); err != nil {
		return nil, err
	}
	for {
		op, item, err := receive(fd, 0)
		if err != nil {
			return items, err
		}
		if op == opEnd {
			return items, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &forever)
		}
		items = append(items, item)
	}
}

// CloseAll closes the descriptors of all items.
func CloseAll(items []Item) {
	for i := range items {
		items[i].Close()
	}
}

// Start starts a keeper, which has nothing yet.
func Start(runDir string, log *slog.Logger) (*Client, error) {
	k := &Client{runDir: runDir, log: log, fd: -1, pidfd: -1, items: make(map[string]Item)}
	if err := k.start(); err != nil {
		return nil, err
	}
	return k, nil
}

// start makes the socket and a process that listens on it.
func (k *Client) start() error {
	path := filepath.Join(k.runDir, SocketName)
	listener, err := listen(path)
	if err != nil {
		return err
	}
	defer listener.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{Name, k.runDir} // the directory tells operators whose it is
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{listener} // listenerFd
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	if k.pidfd, err = unix.PidfdOpen(cmd.Process.Pid, 0); err != nil {
		return fmt.Errorf("pidfd of the keeper: %w", err)
	}
	go func() { _ = cmd.Wait() }() // how it ended is of no interest
	if k.fd, err = dial(path); err != nil {
		return err
	}
	go k.watch(k.fd)
	return nil
}

func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old keeper's socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create the keeper's socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	for _, step := range []func() error{
		func() error { return unix.Bind(fd, &unix.SockaddrUnix{Name: path}) },
		func() error { return os.Chmod(path, 0o600) },
		func() error { return unix.Listen(fd, listenBacklog) },
	} {
		if err := step(); err != nil {
			f.Close()
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	return f, nil
}

// watch notices the keeper's death when nothing is sent for long.
func (k *Client) watch(fd int) {
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if _, err := unix.Poll(poll, -1); err != unix.EINTR {
			break
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed && k.fd == fd {
		k.revive(errEnd)
	}
}

// revive starts another keeper and gives it everything.
func (k *Client) revive(cause error) {
	if k.fd >= 0 {
		unix.Close(k.fd)
		k.fd = -1
	}
	if k.pidfd >= 0 {
		// One that is stopped would keep descriptors for ever.
		_ = unix.PidfdSendSignal(k.pidfd, unix.SIGKILL, nil, 0) // dead already
		unix.Close(k.pidfd)
		k.pidfd = -1
	}
	if time.Now().Before(k.retry) {
		return
	}
	k.log.Warn("the keeper is gone: another one is started", "cause", cause)
	err := k.start()
	for _, item := range k.items {
		if err == nil {
			err = send(k.fd, opPut, &item)
		}
	}
	if err != nil {
		k.retry = time.Now().Add(startPause)
		k.log.Error("without a keeper: connections would not survive the daemon's death", "error", err)
	}
}

// Put keeps an item, in place of the last one of its name; when it returns the
// item outlives this process. blob is kept as JSON. The descriptors stay the
// caller's, who calls Delete before closing them.
func (k *Client) Put(name string, alive bool, blob any, fds ...int) {
	if k == nil {
		return
	}
	text, err := json.Marshal(blob)
	if err != nil || len(text) > MaxBlob || len(name) > MaxName || len(fds) > MaxFds {
		// Our own types and bounds: never at run time.
		panic(fmt.Sprintf("keeper: item %s of %d octets, %d descriptors: %v", name, len(text), len(fds), err))
	}
	item := Item{Name: name, Alive: alive, Blob: text, Fds: fds}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.items[name] = item
	k.send(opPut, &item)
}

// Delete forgets an item, if there is one.
func (k *Client) Delete(name string) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.items, name)
	k.send(opDelete, &Item{Name: name})
}

func (k *Client) send(op byte, item *Item) {
	if k.closed {
		return
	}
	err := error(errEnd)
	if k.fd >= 0 {
		err = send(k.fd, op, item)
	}
	if err != nil {
		k.revive(err)
	}
}

// Quit ends the keeper, and waits for it.
func (k *Client) Quit() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || k.fd < 0 {
		return
	}
	k.closed = true
	if err := send(k.fd, opQuit, &Item{}); err == nil {
		poll := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLRDHUP}}
		_, _ = unix.Poll(poll, int(quitPatience.Milliseconds())) // best effort
	}
	unix.Close(k.fd)
	if k.pidfd >= 0 {
		unix.Close(k.pidfd)
	}
	_ = os.Remove(filepath.Join(k.runDir, SocketName))
}
