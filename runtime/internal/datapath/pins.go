// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/config"
)

const (
	tracePin  = "redirect-err"
	devicePin = "device-"
	tapPin    = "tap-"
	relayPin  = "relay-"
	mapsPin   = "maps-"
)

// mapsName is the directory of the pinned maps: of another version they are
// nothing that this daemon's programs can use.
var mapsName = mapsPin + strconv.Itoa(abi.Version)

// ErrVersion means that the connections of the last daemon are of a version that
// this one cannot adopt.
var ErrVersion = errors.New("the last etrand was of another version: start that one again and stop it with SIGTERM, " +
	"which gives all connections back to the kernel; or end the programs")

// ErrNoPins means that the last daemon's programs and maps are gone.
var ErrNoPins = errors.New("the last daemon's maps are not pinned any more")

// pinDir is a locked directory on a BPF file system.
type pinDir struct {
	path string
	lock *os.File
}

// openPinDir makes the directory, and a BPF file system for it if needed. What
// lies there is a dead daemon's, for a living one would hold the lock: it is
// adopted or discarded.
func openPinDir(path string, adopt bool, log *slog.Logger) (*pinDir, error) {
	if err := mountBPF(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make pin directory: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open pin directory: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		return nil, fmt.Errorf("pin directory %s belongs to another etrand that runs: %w", path, err)
	}
	p := &pinDir{path, dir}
	if adopt {
		err = p.checkVersion()
	} else {
		err = p.discardAll(log)
	}
	if err == nil {
		err = os.MkdirAll(p.maps(), 0o700)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return p, nil
}

// maps is the directory of the pinned maps.
func (p *pinDir) maps() string { return filepath.Join(p.path, mapsName) }

// names lists our pins; a fresh BPF file system has files of the kernel, too.
func (p *pinDir) names() ([]string, error) {
	list, err := os.ReadDir(p.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pin directory: %w", err)
	}
	var names []string
	for _, e := range list {
		if ours(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (p *pinDir) checkVersion() error {
	names, err := p.names()
	switch {
	case err != nil:
		return err
	case slices.Contains(names, mapsName):
		return nil
	case slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, mapsPin) }):
		return ErrVersion
	default:
		return ErrNoPins
	}
}

// CheckPins says whether the last daemon's maps can be adopted: ErrVersion or
// ErrNoPins if not.
func CheckPins(c *config.Config) error {
	return (&pinDir{path: c.PinDir}).checkVersion()
}

func (p *pinDir) discardAll(log *slog.Logger) error {
	names, err := p.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		log.Warn("replacing what a dead daemon left", "pin", name)
		if err := p.discard(name); err != nil {
			return err
		}
	}
	return nil
}

func ours(name string) bool {
	return name == tracePin || strings.HasPrefix(name, devicePin) || strings.HasPrefix(name, tapPin) ||
		strings.HasPrefix(name, relayPin) || strings.HasPrefix(name, mapsPin)
}

// load opens a pinned link; nil if there is none.
func (p *pinDir) load(name string) (link.Link, error) {
	l, err := link.LoadPinnedLink(filepath.Join(p.path, name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pin %s: %w", name, err)
	}
	return l, nil
}

func (p *pinDir) pin(l link.Link, name string) error {
	if err := l.Pin(filepath.Join(p.path, name)); err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	return nil
}

// discard removes a pin and, if it is a link that can be, detaches it.
func (p *pinDir) discard(name string) error {
	path := filepath.Join(p.path, name)
	if strings.HasPrefix(name, mapsPin) {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove pinned maps %s: %w", path, err)
		}
		return nil
	}
	if l, err := link.LoadPinnedLink(path, nil); err == nil {
		// A tracing link cannot be detached; it goes with its last user.
		_ = l.Detach()
		_ = l.Close()
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove pin %s: %w", path, err)
	}
	return nil
}

func (p *pinDir) close() error {
	if err := os.RemoveAll(p.maps()); err != nil {
		return errors.Join(fmt.Errorf("remove pinned maps: %w", err), p.lock.Close())
	}
	err := os.Remove(p.path)
	if errors.Is(err, unix.EBUSY) {
		err = nil // a file system is mounted here
	}
	return errors.Join(err, p.lock.Close())
}

// mountBPF mounts a BPF file system where path is not on one: at the usual
// place if path is below it, or at path itself.
func mountBPF(path string) error {
	const usual = "/sys/fs/bpf"
	at := path
	if rel, err := filepath.Rel(usual, path); err == nil && filepath.IsLocal(rel) {
		at = usual
	}
	if at != usual {
		if err := os.MkdirAll(at, 0o700); err != nil {
			return fmt.Errorf("make pin directory: %w", err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return fmt.Errorf("look at %s: %w", at, err)
	}
	if fs.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", at, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a BPF file system at %s: %w", at, err)
	}
	return nil
}
