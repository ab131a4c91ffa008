// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	tracePin  = "redirect-err"
	devicePin = "device-"
	tapPin    = "tap-"
	relayPin  = "relay-"
)

// pinDir is a locked directory on a BPF file system.
type pinDir struct {
	path string
	lock *os.File
}

// openPinDir makes the directory, and a BPF file system for it if needed. What
// lies there is a dead daemon's, for a living one would hold the lock.
func openPinDir(path string, log *slog.Logger) (*pinDir, error) {
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
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read pin directory: %w", err), dir.Close())
	}
	for _, name := range names {
		if !ours(name) {
			continue // a fresh BPF file system has files of the kernel
		}
		log.Warn("replacing what a dead daemon left", "pin", name)
		if err := p.discard(name); err != nil {
			return nil, errors.Join(err, dir.Close())
		}
	}
	return p, nil
}

func ours(name string) bool {
	return name == tracePin || strings.HasPrefix(name, devicePin) || strings.HasPrefix(name, tapPin) ||
		strings.HasPrefix(name, relayPin)
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
