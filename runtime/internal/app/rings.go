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

// Taps beyond this are refused; an application needs one per sending thread.
const maxTaps = abi.MaxTaps / abi.MaxApps

// rings are what an application has in direct mode: the queues of a device,
// frame memory and taps.
type rings struct {
	device datapath.Device
	set    *xsk.Set

	mu     sync.Mutex // below
	taps   []ownTap
	made   int
	closed bool
}

type ownTap struct {
	ifindex int
	name    string
	link    link.Link
}

// Claim makes sure that the application has rings on the device.
func (a *App) Claim(d handover.Device) (uint16, abi.PathReason) {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	if a.rings != nil {
		if a.rings.device.Ifindex != d.Ifindex {
			return 0, abi.PathReasonLimit // one device per application so far
		}
		if now, _ := a.m.path.Device(d.Ifindex); now.Queues > a.rings.device.Queues {
			return 0, abi.PathReasonDevice // no socket on the new queues
		}
		return firstRing, abi.PathReasonOk
	}
	device, usable := a.m.path.Device(d.Ifindex)
	if !usable {
		return 0, abi.PathReasonNoDevice
	}
	if time.Now().Before(a.claimAgain) || !a.m.hold(d.Ifindex, a) {
		return 0, abi.PathReasonDeviceBusy
	}
	if err := a.makeRings(device); err != nil {
		a.m.unhold(d.Ifindex, a)
		a.claimAgain = time.Now().Add(claimPause)
		a.m.log.Warn("application gets no rings", "app", a.id, "device", device.Name, "error", err)
		if errors.Is(err, xsk.ErrQueueBusy) {
			return 0, abi.PathReasonDeviceBusy
		}
		return 0, abi.PathReasonSyscall
	}
	return firstRing, abi.PathReasonOk
}

func (a *App) makeRings(d datapath.Device) error {
	r := &rings{device: d}
	var err error
	if r.set, err = xsk.Open(d.Ifindex, d.Queues); err != nil {
		return err
	}
	a.saveRings(r)
	die.At("rings-saved")
	for queue, fd := range r.set.Sockets {
		if err := a.m.path.SetXsk(uint32(a.id), uint32(firstRing+queue), fd); err != nil {
			a.closeRings(r)
			return err
		}
	}
	tap, err := a.makeTap(r)
	if err != nil {
		a.closeRings(r)
		return err
	}
	defer unix.Close(tap.Fd) // the application's descriptor keeps it
	if err := a.sendRings(r, tap); err != nil {
		a.closeRings(r)
		return err
	}
	a.rings = r
	return nil
}

func (a *App) sendRings(r *rings, tap *taps.Tap) error {
	a.mu.Lock()
	session := a.session
	a.mu.Unlock()
	if session == nil {
		return errors.New("session is lost")
	}
	fds := append([]int{r.set.Umem, tap.Fd}, r.set.Sockets...)
	return session.Send(control.Rings(abi.MsgRings{
		Context: receiveContext, Queues: uint32(r.device.Queues), FirstRing: firstRing,
		RingSize: abi.RingSize, FillSize: r.set.Fill, Frames: r.set.Frames,
		FrameSize: abi.FrameSize, Mtu: uint32(r.device.MTU),
	}), fds...)
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
	for queue := range r.set.Sockets {
		errs = append(errs, a.m.path.DeleteXsk(uint32(a.id), uint32(firstRing+queue)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, t := range r.taps {
		errs = append(errs, a.m.path.DeleteTap(t.ifindex))
		a.m.path.ReleaseTap(t.link)
		errs = append(errs, a.m.space.Delete(t.ifindex))
	}
	a.m.journal.Delete(a.ringsItem())
	r.set.Close()
	if err := errors.Join(errs...); err != nil {
		a.m.log.Error("rings not taken back wholly", "app", a.id, "error", err)
	}
}

var _ handover.Owner = (*App)(nil)
