// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/admin"
	"github.com/etran-go/etran/runtime/internal/app"
	"github.com/etran-go/etran/runtime/internal/config"
	"github.com/etran-go/etran/runtime/internal/control"
	"github.com/etran-go/etran/runtime/internal/datapath"
	"github.com/etran-go/etran/runtime/internal/sched"
)

// daemon is all that runs, with what undoes it in reverse order.
type daemon struct{ undo []func() }

func (d *daemon) onStop(f func()) { d.undo = append(d.undo, f) }

func (d *daemon) stop() {
	for i := len(d.undo) - 1; i >= 0; i-- {
		d.undo[i]()
	}
}

// start brings everything up, or nothing.
func start(ctx context.Context, c *config.Config, log *slog.Logger) (d *daemon, err error) {
	d = new(daemon)
	defer func() {
		if err != nil {
			d.stop()
		}
	}()
	if err := checkPrivilege(); err != nil {
		return d, err
	}
	unlock, err := lockRunDir(c.RunDir)
	if err != nil {
		return d, err
	}
	d.onStop(unlock)
	path, err := datapath.Open(c, log)
	if err != nil {
		return d, err
	}
	d.onStop(path.Close)
	manager, err := app.NewManager(c, path, log)
	if err != nil {
		return d, err
	}
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	d.onStop(stopWatching)
	if err := manager.Watch(watching); err != nil {
		return d, err
	}
	if err := d.serve(c, manager, log); err != nil {
		return d, err
	}
	if err := sched.Raise(); err != nil {
		log.Warn("no raised priority: switches may take milliseconds on a busy machine", "error", err)
	}
	return d, nil
}

// serve opens the sockets. Applications are served last and stopped first.
func (d *daemon) serve(c *config.Config, manager *app.Manager, log *slog.Logger) error {
	adminListener, err := admin.Listen(c.RunDir)
	if err != nil {
		return err
	}
	server := admin.New(manager, version, log)
	d.onStop(server.Close)
	go server.Serve(adminListener)

	listener, err := control.Listen(c.RunDir)
	if err != nil {
		return err
	}
	d.onStop(func() {
		listener.Close()
		manager.Stop()
	})
	go manager.Accept(listener)
	return nil
}

// checkPrivilege says at once what would otherwise fail obscurely later.
func checkPrivilege() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("must run as root (CAP_NET_ADMIN, CAP_BPF, CAP_SYS_ADMIN), not as uid %d", os.Geteuid())
	}
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("/dev/net/tun (CONFIG_TUN) is needed to send: %w", err)
	}
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("AF_XDP sockets (CONFIG_XDP_SOCKETS) are needed to receive: %w", err)
	}
	return unix.Close(fd)
}

// lockRunDir makes the run directory ours; everybody may search it.
func lockRunDir(path string) (unlock func(), err error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		return nil, fmt.Errorf("open run directory to all: %w", err)
	}
	name := filepath.Join(path, "lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another etrand runs in %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
