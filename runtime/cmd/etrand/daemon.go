// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
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
	"github.com/etran-go/etran/runtime/internal/keeper"
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
	adopting := false
	defer func() {
		if err != nil && !adopting { // else it all stays for another daemon
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
	k, items, err := openKeeper(c, log)
	if err != nil {
		return d, err
	}
	adopting = len(items) > 0
	d.onStop(k.Quit)
	path, err := openPath(c, adopting, log)
	if err != nil {
		return d, err
	}
	d.onStop(path.Close)
	manager, err := app.NewLasting(c, path, k, items, log)
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

// journalItem says which daemon wrote the keeper's items.
const journalItem = "journal"

// journalVersion changes with the form of the items.
const journalVersion = 1

type journal struct {
	Format int
	Daemon string // version, for people
}

// openKeeper finds the keeper that the last daemon left, with what it keeps, or
// starts one.
func openKeeper(c *config.Config, log *slog.Logger) (*keeper.Client, []keeper.Item, error) {
	k, items, err := keeper.Connect(c.RunDir, log)
	if err != nil {
		return nil, nil, err
	}
	if err := checkItems(c, items); err != nil {
		keeper.CloseAll(items)
		if !errors.Is(err, datapath.ErrNoPins) {
			return nil, nil, err
		}
		log.Error("connections of the last daemon are lost", "error", err)
		k.Quit()
		k, items = nil, nil
	}
	if k == nil {
		if k, err = keeper.Start(c.RunDir, log); err != nil {
			return nil, nil, err
		}
	}
	k.Put(journalItem, false, journal{journalVersion, version})
	return k, items, nil
}

// checkItems says whether this daemon can adopt what is kept.
func checkItems(c *config.Config, items []keeper.Item) error {
	if len(items) == 0 {
		return nil
	}
	for i := range items {
		var j journal
		if items[i].Name != journalItem {
			continue
		}
		if err := json.Unmarshal(items[i].Blob, &j); err != nil || j.Format != journalVersion {
			return fmt.Errorf("%w (it was %q)", datapath.ErrVersion, j.Daemon)
		}
	}
	return datapath.CheckPins(c)
}

func openPath(c *config.Config, adopt bool, log *slog.Logger) (*datapath.DataPath, error) {
	if adopt {
		return datapath.Adopt(c, log)
	}
	return datapath.Open(c, log)
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
