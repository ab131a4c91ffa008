// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
	"github.com/etran-go/etran/runtime/internal/control"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/handover"
)

var pubSize = uint64(abi.AppSlots * binary.Size(abi.Pub{}))

// App is a registered application. It ends with its process, not with its
// session: a child may hold the socket, and a daemon's client may lose it.
type App struct {
	m          *Manager
	id         uint16
	generation uint32
	peer       control.Peer
	comm       string
	arena      *arena.Arena
	pub        *ebpf.Map
	wake       int           // eventfd
	workers    chan struct{} // held by every request being handled, see maxWorkers
	stop       int           // eventfd: the application shall end before its process
	gone       chan struct{} // closed when it has ended

	checking atomic.Bool // the timers look at its slots

	claimMu    sync.Mutex // held while rings are made
	rings      *rings
	claimAgain time.Time // not before

	stoppedMu sync.Mutex // what Stopped found last
	stopped   bool
	stoppedAt time.Time

	mu      sync.Mutex
	session *control.Session // nil once lost
	ended   bool
	slots   [abi.AppSlots]*handover.Slot
	order   [abi.AppSlots]mailbox
	history map[uint64]handover.Note // by socket cookie
}

// maxWorkers bounds the requests of one application that are handled at a time:
// a program can make each last, and each takes a thread.
const maxWorkers = 32

// open gives the application what every one gets.
func (a *App) open() error {
	var err error
	if a.arena, err = arena.New(); err != nil {
		return err
	}
	for _, fd := range []*int{&a.wake, &a.stop} {
		if *fd, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
			return fmt.Errorf("create eventfd: %w", err)
		}
	}
	if a.pub, err = a.m.path.NewPubMap(); err != nil {
		return err
	}
	a.save()
	return a.m.path.SetApp(uint32(a.id), a.pub, a.generation)
}

// close gives back what open made.
func (a *App) close() {
	if err := errors.Join(a.m.path.RevokeApp(uint32(a.id)), a.m.path.RemoveApp(uint32(a.id))); err != nil {
		a.m.log.Error("application not removed from the data path", "app", a.id, "error", err)
	}
	a.m.journal.Delete(a.item())
	if a.pub != nil {
		a.pub.Close()
	}
	for _, fd := range []int{a.wake, a.stop} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if a.arena != nil {
		a.arena.Close()
	}
}

// awaitDeath waits for the end of the process.
func (a *App) awaitDeath() {
	poll := []unix.PollFd{{Fd: int32(a.peer.Pidfd), Events: unix.POLLIN}, {Fd: int32(a.stop), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, -1)
		if n > 0 {
			break
		}
		if err != nil && err != unix.EINTR {
			a.m.log.Error("cannot wait for the end of a process", "pid", a.peer.Pid, "error", err)
			return
		}
	}
	a.end()
}

// end gives the connections of a dead program back to the kernel, which then
// does what it always does when a process dies, and takes everything back.
func (a *App) end() {
	// First of all: whoever still holds a tap speaks for nobody any more.
	if err := a.m.path.RevokeApp(uint32(a.id)); err != nil {
		a.m.log.Error("identity not revoked", "app", a.id, "error", err)
	}
	a.mu.Lock()
	session := a.session
	a.ended = true
	a.mu.Unlock()
	if session != nil {
		session.Stop()
	}
	for _, s := range a.activeSlots() {
		s.DemoteAlone(abi.PathReasonDeath)
	}
	a.giveUpRings()
	totals := a.arena.Totals()
	a.m.counters.End(counters.Traffic{KernelBytesIn: totals.KernelBytesIn, KernelBytesOut: totals.KernelBytesOut})
	a.close()
	unix.Close(a.peer.Pidfd)
	a.m.removeApp(a)
	close(a.gone)
	a.m.log.Info("application ended", "app", a.id, "pid", a.peer.Pid, "comm", a.comm)
}

// run handles the session's messages until it ends.
func (a *App) run(s *control.Session) {
	limiter := rate{perSecond: a.m.cfg.Policy.MessageRate, last: time.Now()}
	for {
		msg, err := s.Receive()
		if errors.Is(err, control.ErrProtocol) {
			a.m.log.Warn("program does not follow the protocol", "app", a.id, "pid", a.peer.Pid, "error", err)
			break
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				a.m.log.Warn("session lost", "app", a.id, "error", err)
			}
			break
		}
		limiter.wait()
		limiter.charge(func() { a.handle(s, msg) })
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session == s { // and not resumed since
		a.session = nil // the connections stay as long as the process lives
	}
}

func (a *App) handle(s *control.Session, msg control.Message) {
	switch msg.Type {
	case abi.MsgTypeDemoteForeign:
		a.m.demoteForeign(s, msg.Fd) // makes nobody wait but this program
	case abi.MsgTypeTap:
		a.sendTap(s)
	case abi.MsgTypeRingsReady:
		a.ringsReady()
	case abi.MsgTypeRegister:
		a.m.log.Debug("program registers twice", "app", a.id)
	default:
		a.handleSlot(msg)
	}
}

func (a *App) handleSlot(msg control.Message) {
	index := msg.Slot.Slot
	if index < abi.FirstSlot || index >= uint32(abi.FirstSlot+a.m.cfg.Policy.MaxConns) {
		a.m.log.Debug("program names no slot", "app", a.id, "slot", index)
		msg.Close()
		return
	}
	slot := a.slot(index)
	if slot == nil {
		msg.Close()
		return
	}
	job := func() {
		a.workers <- struct{}{}
		defer func() { <-a.workers }()
		if err := act(slot, msg); err != nil {
			a.m.log.Debug("request refused", "app", a.id, "slot", index, "type", msg.Type, "error", err)
		}
	}
	// Observing may take its time, as the claim of a device does. A switch
	// keeps the program waiting: it is done here and now.
	if !a.order[index].do(job, msg.Type == abi.MsgTypeObserve) {
		a.m.log.Debug("program sends more than it may", "app", a.id, "slot", index)
		msg.Close()
	}
}

func act(s *handover.Slot, msg control.Message) error {
	switch msg.Type {
	case abi.MsgTypeObserve:
		return s.Observe(msg.Fd, int(msg.Slot.Number), abi.PathReason(msg.Slot.Reason))
	case abi.MsgTypeSwitch:
		return s.Switch()
	case abi.MsgTypeDemote:
		return s.Demote(msg.Slot.Generation, abi.PathReason(msg.Slot.Reason))
	case abi.MsgTypeCancel:
		return s.Cancel()
	default: // no other type gets through Decode
		return s.Reinject()
	}
}

// slot returns a slot, nil once the application has ended.
func (a *App) slot(index uint32) *handover.Slot {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return nil
	}
	if a.slots[index] == nil {
		a.slots[index] = handover.NewSlot(&a.m.env, a, a.arena, a.id, uint16(index))
	}
	return a.slots[index]
}

// activeSlots returns the slots that were ever used.
func (a *App) activeSlots() []*handover.Slot {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []*handover.Slot
	for _, s := range a.slots {
		if s != nil {
			list = append(list, s)
		}
	}
	return list
}

// Wake makes the application's sleeping threads look at their slots.
func (a *App) Wake() {
	one := binary.NativeEndian.AppendUint64(nil, 1)
	// Fails only when the counter is full, and then it is readable.
	_, _ = unix.Write(a.wake, one)
}

// please asks the application to switch a connection. A demotion comes, whether
// it answers or not.
func (a *App) please(t abi.MsgType, s *handover.Slot, generation uint32, reason abi.PathReason) bool {
	if t == abi.MsgTypePleaseDemote && s != nil {
		s.Expect(reason)
	}
	a.mu.Lock()
	session := a.session
	a.mu.Unlock()
	if session == nil {
		return false
	}
	slot := uint32(0)
	if s != nil {
		slot = s.Index()
	}
	if err := session.Send(control.Slot(t, slot, generation, reason)); err != nil {
		a.m.log.Warn("request not delivered", "app", a.id, "error", err)
		return false
	}
	return true
}

// pleaseDemote asks for the demotion of every connection that which selects,
// and returns how many.
func (a *App) pleaseDemote(reason abi.PathReason, which func(*handover.Slot) (uint32, bool)) int {
	n := 0
	for _, s := range a.activeSlots() {
		if generation, ok := which(s); ok && a.please(abi.MsgTypePleaseDemote, s, generation, reason) {
			n++
		}
	}
	return n
}
