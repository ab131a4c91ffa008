// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/sched"
)

// The descriptor of the listening socket that a keeper is started with.
const listenerFd = 3

const (
	// Without a daemon and without a living process the keeper ends after
	// this; a daemon that is restarted is back sooner.
	lonely = time.Minute
	look   = 5 * time.Second

	answerPatience = 5 * time.Second
	openFiles      = 1 << 20
)

// Serve is the keeper's main function: it returns when the keeper is told to
// quit or has nothing left to keep things for.
func Serve() error {
	// Only the daemon ends a keeper. Signals go to a whole group at times.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR2)
	// Once more: the kernel notes who listens, for SO_PEERCRED.
	if err := unix.Listen(listenerFd, listenBacklog); err != nil {
		return fmt.Errorf("not started by etrand: %w", err)
	}
	unix.CloseOnExec(listenerFd)
	// Best effort, both: a machine that does not allow them works as well.
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: openFiles, Max: openFiles})
	_ = sched.Raise()
	_ = os.Chdir("/")
	k := &server{listener: listenerFd, client: -1, items: make(map[string]Item), alone: time.Now()}
	return k.run()
}

// server is the keeper: one loop, one client.
type server struct {
	listener int
	client   int // -1: none
	items    map[string]Item
	alone    time.Time // since when there is neither client nor living process
	quit     bool
}

func (k *server) run() error {
	for !k.quit {
		poll := []unix.PollFd{{Fd: int32(k.client), Events: unix.POLLIN}, {Fd: int32(k.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, int(look.Milliseconds())); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		switch {
		case poll[0].Revents != 0:
			k.take(0)
		case poll[1].Revents != 0:
			k.accept()
		case k.deserted():
			k.quit = true
		}
	}
	return nil
}

// deserted says whether nobody will ever come for the items.
func (k *server) deserted() bool {
	if k.client >= 0 || k.anyAlive() {
		k.alone = time.Now()
		return false
	}
	return time.Since(k.alone) > lonely
}

func (k *server) anyAlive() bool {
	for _, item := range k.items {
		if !item.Alive || len(item.Fds) == 0 {
			continue
		}
		poll := []unix.PollFd{{Fd: int32(item.Fds[0]), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 0); n == 0 && err == nil {
			return true
		}
	}
	return false
}

// accept lets a new client replace the old one, whose last packets come first.
func (k *server) accept() {
	fd, _, err := unix.Accept4(k.listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return // gone again
	}
	if !trusted(fd) {
		unix.Close(fd)
		return
	}
	for k.client >= 0 && !k.quit && k.take(unix.MSG_DONTWAIT) {
	}
	k.leave()
	k.client = fd
	setPatience(fd, answerPatience)
}

// trusted: the other end runs as our own user, root.
func trusted(fd int) bool {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && int(cred.Uid) == os.Geteuid()
}

func setPatience(fd int, d time.Duration) {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv) // cannot fail
}

func (k *server) leave() {
	if k.client >= 0 {
		unix.Close(k.client)
	}
	k.client = -1
	k.alone = time.Now()
}

// take handles one packet; false if there is none.
func (k *server) take(flags int) bool {
	op, item, err := receive(k.client, flags)
	if errors.Is(err, unix.EAGAIN) {
		return false
	}
	if err == nil {
		err = k.do(op, item)
	}
	if err != nil {
		k.leave()
	}
	return err == nil
}

func (k *server) do(op byte, item Item) error {
	old, known := k.items[item.Name]
	switch op {
	case opPut:
		if !known && len(k.items) >= maxItems {
			item.Close()
			return errors.New("too many items")
		}
		k.items[item.Name] = item
		old.Close()
		return nil
	case opDelete:
		delete(k.items, item.Name)
		old.Close()
	case opList:
		return k.list()
	case opQuit:
		k.quit = true
	}
	item.Close() // no other operation has descriptors
	return nil
}

func (k *server) list() error {
	for _, item := range k.items {
		if err := send(k.client, opPut, &item); err != nil {
			return err
		}
	}
	return send(k.client, opEnd, &Item{})
}
