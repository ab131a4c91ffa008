// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/config"
	"github.com/etran-go/etran/runtime/internal/control"
	"github.com/etran-go/etran/runtime/internal/datapath"
	"github.com/etran-go/etran/runtime/internal/die"
	"github.com/etran-go/etran/runtime/internal/handover"
	"github.com/etran-go/etran/runtime/internal/taps"
	"github.com/etran-go/etran/runtime/internal/xsk"
)

// The one receive context that an application has so far.
const (
	receiveContext = 0
	firstRing      = 0
)

// claimPause keeps a claim that failed from being tried for every connection:
// it takes long, and they wait for each other.
const claimPause = 10 * time.Second

// Taps beyond this are refused; an application needs one per sending thread. One
// place in the table is for the far end of its veth pair.
const maxTaps = abi.MaxTaps/abi.MaxApps - 1

// rings are what an application has: frame memory, taps, and AF_XDP sockets on
// the queues of a device (direct), at the end of a veth pair of its own
// (shared), or on both.
type rings struct {
	device datapath.Device
	set    *xsk.Set
	pair   *ownPair
	direct progress

	mu     sync.Mutex // below
	taps   []ownTap
	made   int
	closed bool
}

// progress of the device's queues to an application.
type progress int

const (
	none    progress = iota
	offered          // the library has not put frames there yet
	ready
)

type ownTap struct {
	ifindex int
	name    string
	link    link.Link
}

type ownPair struct {
	taps.Pair
	name string
	link link.Link
}

// first is what connections get as their ring.
func (r *rings) first() uint16 {
	if r.direct == ready {
		return firstRing
	}
	return abi.SharedRing
}

// Claim makes sure that the application has rings on the device.
func (a *App) Claim(d handover.Device) (uint16, abi.PathReason) {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	if a.rings != nil {
		if a.rings.device.Ifindex != d.Ifindex {
			return 0, abi.PathReasonLimit // one device per application so far
		}
		now, _ := a.m.path.Device(d.Ifindex)
		if a.rings.direct == ready && now.Queues > a.rings.device.Queues {
			return 0, abi.PathReasonDevice // no socket on the new queues
		}
		return a.rings.first(), abi.PathReasonOk
	}
	device, usable := a.m.path.Device(d.Ifindex)
	if !usable {
		return 0, abi.PathReasonNoDevice
	}
	if time.Now().Before(a.claimAgain) {
		return 0, abi.PathReasonDeviceBusy
	}
	err := a.claimRings(device)
	switch {
	case err == nil:
		return a.rings.first(), abi.PathReasonOk
	case errors.Is(err, errHeld):
		return 0, abi.PathReasonDeviceBusy
	}
	a.claimAgain = time.Now().Add(claimPause)
	a.m.log.Warn("application gets no rings", "app", a.id, "device", device.Name, "error", err)
	if errors.Is(err, xsk.ErrQueueBusy) {
		return 0, abi.PathReasonDeviceBusy
	}
	return 0, abi.PathReasonSyscall
}

// errHeld: another application has the device's queues.
var errHeld = errors.New("device's queues are held")

// claimRings makes direct rings where it can, or shared ones where it may.
func (a *App) claimRings(d datapath.Device) error {
	err := errHeld
	if d.Sharing != config.SharingAlways && a.m.hold(d.Ifindex, a) {
		if err = a.makeRings(d, a.bindFirst); err == nil {
			return nil
		}
		a.m.unhold(d.Ifindex, a)
	}
	busy := errors.Is(err, errHeld) || errors.Is(err, xsk.ErrQueueBusy)
	if d.Sharing == config.SharingNever || !busy {
		return err
	}
	return a.makeRings(d, a.bindPair)
}

// makeRings makes everything but the sockets, which bind does.
func (a *App) makeRings(d datapath.Device, bind func(*rings) error) (err error) {
	r := &rings{device: d}
	if r.set, err = xsk.Open(d.Queues); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.closeRings(r)
		}
	}()
	if err := bind(r); err != nil {
		return err
	}
	a.saveRings(r)
	die.At("rings-saved")
	tap, err := a.makeTap(r)
	if err != nil {
		return err
	}
	defer unix.Close(tap.Fd) // the application's descriptor keeps it
	if err := a.sendRings(r, r.set.Sockets, r.set.Umem, tap.Fd); err != nil {
		return err
	}
	a.rings = r
	return nil
}

// bindFirst makes the application's first rings those of the device. The
// journal shall know them as such.
func (a *App) bindFirst(r *rings) error {
	if err := xsk.Patiently(func() error { return a.bindQueues(r) }); err != nil {
		return err
	}
	r.direct = ready
	return nil
}

// bindQueues makes a socket for every queue of the device.
func (a *App) bindQueues(r *rings) error {
	before := len(r.set.Sockets)
	for queue := range r.device.Queues {
		s, err := r.set.Bind(r.device.Ifindex, queue, firstRing+uint32(queue))
		if err == nil {
			err = a.m.path.SetXsk(uint32(a.id), s.Ring, s.Fd)
		}
		if err != nil {
			a.unbind(r, before)
			return err
		}
	}
	return nil
}

// unbind gives up the sockets beyond the first n.
func (a *App) unbind(r *rings, n int) {
	for _, s := range r.set.Sockets[n:] {
		if err := a.m.path.DeleteXsk(uint32(a.id), s.Ring); err != nil {
			a.m.log.Error("ring not taken back", "app", a.id, "ring", s.Ring, "error", err)
		}
	}
	r.set.Trim(n)
}

// pairMTU lets every frame through that ingress does.
const pairMTU = abi.FrameSize - abi.FrameHeadroom

// bindPair makes a veth pair with a socket at its far end.
func (a *App) bindPair(r *rings) error {
	own := &ownPair{}
	var err error
	own.Pair, err = a.m.space.CreatePair(fmt.Sprintf("etv%d", a.id), pairMTU, func(name string, p taps.Pair) error {
		own.name = name
		var err error
		if own.link, err = a.m.path.AttachRelay(p.Far, name); err != nil {
			return err
		}
		if err := a.openPair(r, p); err != nil {
			a.m.path.Release(own.link)
			return errors.Join(err, a.m.path.DeleteTap(p.Far))
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.pair = own
	return nil
}

// openPair shows ingress the near end last, when all that follows is in place.
func (a *App) openPair(r *rings, p taps.Pair) error {
	s, err := r.set.Bind(p.Far, 0, abi.SharedRing)
	if err != nil {
		return err
	}
	if err := a.m.path.SetXsk(uint32(a.id), s.Ring, s.Fd); err != nil {
		return err
	}
	if err := a.m.path.SetTap(p.Far, uint32(a.id), a.generation); err != nil {
		return err
	}
	return a.m.path.SetPair(uint32(a.id), p.Near)
}

// sendRings tells the library of sockets; with memory and tap the first time.
func (a *App) sendRings(r *rings, sockets []xsk.Socket, first ...int) error {
	a.mu.Lock()
	session := a.session
	a.mu.Unlock()
	if session == nil {
		return errors.New("session is lost")
	}
	msg := abi.MsgRings{
		Context: receiveContext, Queues: uint32(len(sockets)), FirstRing: sockets[0].Ring,
		RingSize: abi.RingSize, FillSize: xsk.Fill,
		FrameSize: abi.FrameSize, Mtu: uint32(r.device.MTU),
	}
	if len(first) > 0 {
		msg.Frames = r.set.Frames
	}
	fds := first
	for _, s := range sockets {
		fds = append(fds, s.Fd)
	}
	return session.Send(control.Rings(msg), fds...)
}

// offerQueues gives a device's queues, which nobody has, to an application that
// has shared rings there. Its frames come by either way from then on.
func (m *Manager) offerQueues(ifindex int) {
	for _, a := range m.list() {
		if a.takeQueues(ifindex) {
			return
		}
	}
}

// takeQueues returns false if the application has no use for the queues.
func (a *App) takeQueues(ifindex int) (taken bool) {
	err := xsk.Patiently(func() (err error) {
		taken, err = a.tryQueues(ifindex)
		return err
	})
	if err != nil {
		a.m.log.Warn("application cannot take the queues", "app", a.id, "error", err)
	}
	return taken
}

func (a *App) tryQueues(ifindex int) (taken bool, err error) {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	r := a.rings
	if r == nil || r.direct != none || r.device.Ifindex != ifindex || r.device.Sharing == config.SharingAlways ||
		!a.m.hold(ifindex, a) {
		return false, nil
	}
	before := len(r.set.Sockets)
	if err = a.bindQueues(r); err == nil {
		if err = a.sendRings(r, r.set.Sockets[before:]); err == nil {
			r.direct = offered
			a.saveRings(r)
			return true, nil
		}
		a.unbind(r, before)
	}
	a.m.unhold(ifindex, a)
	return false, err
}

// ringsReady: the library has frames in all rings that it was told of.
func (a *App) ringsReady() {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	if a.rings == nil || a.rings.direct != offered {
		return
	}
	a.rings.direct = ready
	a.saveRings(a.rings)
	moved := 0
	for _, s := range a.activeSlots() {
		if a.moveToQueues(a.index(s)) {
			moved++
		}
	}
	a.m.log.Info("application has the queues", "app", a.id, "device", a.rings.device.Name, "connections", moved)
}

func (a *App) index(s *handover.Slot) uint32 { return uint32(a.id)*abi.AppSlots + s.Index() }

// moveToQueues directs a connection's frames to the direct rings. One that is
// being installed right now stays with the shared ring, which goes on working.
func (a *App) moveToQueues(index uint32) bool {
	conn, err := a.m.path.Read(index)
	if err != nil || conn.State == uint32(abi.FlowStateNone) || conn.Ring != abi.SharedRing {
		return false
	}
	err = a.m.path.SetRing(index, conn.Generation, firstRing)
	if err != nil && !errors.Is(err, unix.ESTALE) { // the slot has another connection
		a.m.log.Warn("connection stays with its shared ring", "app", a.id, "index", index, "error", err)
	}
	return err == nil
}

// makeTap makes one more tap for the application.
func (a *App) makeTap(r *rings) (*taps.Tap, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, unix.ENOTCONN
	}
	if len(r.taps) >= maxTaps {
		return nil, fmt.Errorf("application has %d taps: %w", len(r.taps), unix.EMFILE)
	}
	name := fmt.Sprintf("et%d-%d", a.id, r.made)
	var l link.Link
	tap, err := a.m.space.Create(name, func(ifindex int) error {
		// The identity comes first: a tap without one can do nothing.
		if err := a.m.path.SetTap(ifindex, uint32(a.id), a.generation); err != nil {
			return err
		}
		var err error
		l, err = a.m.path.AttachTap(ifindex, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	die.At("tap-made")
	r.made++
	r.taps = append(r.taps, ownTap{tap.Ifindex, name, l})
	a.saveRings(r)
	die.At("tap-saved")
	return tap, nil
}

// sendTap answers the request for another tap.
func (a *App) sendTap(s *control.Session) {
	a.claimMu.Lock()
	r := a.rings
	a.claimMu.Unlock()
	var fds []int
	err := error(unix.ENOTCONN) // no rings yet
	if r != nil {
		var tap *taps.Tap
		if tap, err = a.makeTap(r); err == nil {
			defer unix.Close(tap.Fd)
			fds = []int{tap.Fd}
		}
	}
	var errno unix.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = unix.EIO
	}
	if err := s.Send(control.Done(abi.MsgTypeTapReady, int32(errno)), fds...); err != nil {
		a.m.log.Warn("tap not delivered", "app", a.id, "error", err)
	}
}

// Frame copies a frame of the application's memory.
func (a *App) Frame(addr uint64, length uint32) ([]byte, bool) {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	if a.rings == nil {
		return nil, false
	}
	return a.rings.set.Frame(addr, length)
}

// giveUpRings takes rings and taps back.
func (a *App) giveUpRings() {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	if a.rings != nil {
		a.closeRings(a.rings)
		a.rings = nil
	}
}

func (a *App) closeRings(r *rings) {
	var errs []error
	if r.pair != nil {
		errs = append(errs, a.m.path.DeletePair(uint32(a.id)))
	}
	for _, s := range r.set.Sockets {
		errs = append(errs, a.m.path.DeleteXsk(uint32(a.id), s.Ring))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	devices := r.taps
	if r.pair != nil {
		devices = append(devices, ownTap{r.pair.Far, r.pair.name, r.pair.link})
	}
	for _, d := range devices {
		errs = append(errs, a.m.path.DeleteTap(d.ifindex))
		a.m.path.Release(d.link)
		errs = append(errs, a.m.space.Delete(d.ifindex))
	}
	a.m.journal.Delete(a.ringsItem())
	r.set.Close()
	if err := errors.Join(errs...); err != nil {
		a.m.log.Error("rings not taken back wholly", "app", a.id, "error", err)
	}
}

var _ handover.Owner = (*App)(nil)
