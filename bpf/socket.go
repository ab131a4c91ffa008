// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// Sockets are the programs about the kernel's own sockets: the filter of those
// that sleep, and a look into what no socket option tells.
type Sockets struct {
	objects socketObjects
	walk    walk

	mu sync.Mutex // `inspected` holds one socket at a time
}

// LoadSockets loads them. With opts.PinPath a new daemon goes on counting the
// strays of sockets that got their filter from the last one.
func LoadSockets(opts LoadOptions) (*Sockets, error) {
	spec, err := loadSocket()
	if err != nil {
		return nil, fmt.Errorf("read embedded socket programs: %w", err)
	}
	if opts.PinPath != "" {
		spec.Maps["strays"].Pinning = ebpf.PinByName
		spec.Maps["stray_total"].Pinning = ebpf.PinByName
	}
	s := new(Sockets)
	err = spec.LoadAndAssign(&s.objects, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: opts.PinPath}})
	if err != nil {
		return nil, fmt.Errorf("load socket programs: %w", err)
	}
	if s.walk, err = attachWalk(s.objects.EtranInspect.FD()); err != nil {
		return nil, errors.Join(err, s.objects.Close())
	}
	return s, nil
}

// Close unloads them; sockets keep a filter that they have.
func (s *Sockets) Close() error { return errors.Join(s.walk.close(), s.objects.Close()) }

// DropFilter is the descriptor of the socket filter that drops and counts
// every segment, for SO_ATTACH_BPF.
func (s *Sockets) DropFilter() int { return s.objects.EtranDrop.FD() }

// Strays is how many segments the filter has dropped in all.
func (s *Sockets) Strays() (uint64, error) {
	var n uint64
	if err := s.objects.StrayTotal.Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("read the number of strays: %w", err)
	}
	return n, nil
}

// StraysOf is how many it dropped for the socket with a cookie.
func (s *Sockets) StraysOf(cookie uint64) (uint64, error) {
	var n uint64
	err := s.objects.Strays.Lookup(cookie, &n)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, fmt.Errorf("read the number of strays of socket %d: %w", cookie, err)
	}
	return n, nil
}

// Inspect returns the traits of a TCP socket, given by this process's
// descriptor of it.
func (s *Sockets) Inspect(fd int) (abi.SockTrait, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.objects.Inspected.Put(uint32(0), uint32(fd)); err != nil {
		return 0, fmt.Errorf("name the socket to inspect: %w", err)
	}
	var answer [4]byte
	switch n, err := s.walk.read(answer[:]); {
	case err != nil:
		return 0, err
	case n != len(answer):
		return 0, fmt.Errorf("inspect socket: %w", unix.ENOTSOCK)
	}
	return abi.SockTrait(binary.NativeEndian.Uint32(answer[:])), nil
}
