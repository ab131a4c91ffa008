// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/runtime/internal/arena"
	"github.com/etran-go/etran/runtime/internal/control"
	"github.com/etran-go/etran/runtime/internal/datapath"
	"github.com/etran-go/etran/runtime/internal/handover"
	"github.com/etran-go/etran/runtime/internal/keeper"
	"github.com/etran-go/etran/runtime/internal/taps"
	"github.com/etran-go/etran/runtime/internal/xsk"
)

// What the keeper has: the taps' namespace; of each application what it was
// given and its rings; of each connection the handover's journal.
const (
	tapsItem    = "taps"
	appPrefix   = "app-"
	ringsPrefix = "rings-"
)

// savedApp goes with the pidfd, the arena and the wake eventfd.
type savedApp struct {
	ID         uint16
	Generation uint32
	Pid        int
	Uid        uint32
	Comm       string
}

// savedRings go with the frame memory and the sockets.
type savedRings struct {
	App     uint16
	Device  datapath.Device
	Direct  progress
	Sockets []uint32 // their rings
	Made    int
	Taps    []savedTap
	Pair    *savedPair
}

type savedPair struct {
	taps.Pair
	Name string
}

type savedTap struct {
	Ifindex int
	Name    string
}

func (a *App) item() string      { return fmt.Sprintf("%s%d", appPrefix, a.id) }
func (a *App) ringsItem() string { return fmt.Sprintf("%s%d", ringsPrefix, a.id) }

func (a *App) save() {
	a.m.journal.Put(a.item(), true, savedApp{a.id, a.generation, a.peer.Pid, a.peer.Uid, a.comm},
		a.peer.Pidfd, a.arena.Fd(), a.wake)
}

// saveRings needs the lock of the rings, unless nobody else knows them yet.
func (a *App) saveRings(r *rings) {
	saved := savedRings{App: a.id, Device: r.device, Direct: r.direct, Made: r.made}
	for _, t := range r.taps {
		saved.Taps = append(saved.Taps, savedTap{t.ifindex, t.name})
	}
	if r.pair != nil {
		saved.Pair = &savedPair{r.pair.Pair, r.pair.name}
	}
	fds := []int{r.set.Umem}
	for _, s := range r.set.Sockets {
		saved.Sockets = append(saved.Sockets, s.Ring)
		fds = append(fds, s.Fd)
	}
	a.m.journal.Put(a.ringsItem(), false, saved, fds...)
}

// adoption is the taking over of what the last daemon left.
type adoption struct {
	m *Manager
	// private are the taps and pairs that were adopted, by name, records the
	// connection records.
	private map[string]bool
	records map[uint32]bool
	slots   []*handover.Slot
	owners  []*App
}

// adopt takes over what the last daemon left. Items that cannot be taken over
// are forgotten, with a reason; only the lack of a namespace is an error.
func (m *Manager) adopt(items []keeper.Item) error {
	d := &adoption{m: m, private: make(map[string]bool), records: make(map[uint32]bool)}
	if err := d.openSpace(items); err != nil {
		keeper.CloseAll(items)
		return err
	}
	for _, kind := range []struct {
		prefix string
		adopt  func(*keeper.Item) error
	}{{appPrefix, d.app}, {ringsPrefix, d.rings}, {handover.ItemPrefix, d.slot}} {
		for i := range items {
			item := &items[i]
			if !strings.HasPrefix(item.Name, kind.prefix) {
				continue
			}
			if err := kind.adopt(item); err != nil {
				d.lose(item, err)
			}
		}
	}
	if len(items) == 0 {
		return nil
	}
	if err := d.sweep(); err != nil {
		return err
	}
	d.recover()
	return nil
}

// openSpace takes over the taps' namespace, or makes one.
func (d *adoption) openSpace(items []keeper.Item) (err error) {
	m := d.m
	for i := range items {
		if items[i].Name == tapsItem && len(items[i].Fds) == 1 {
			m.space, err = taps.AdoptSpace(items[i].Fds[0])
			items[i].Fds = nil
		}
	}
	if m.space == nil && err == nil {
		m.space, err = taps.NewSpace()
	}
	if err != nil {
		return err
	}
	m.journal.Put(tapsItem, false, nil, m.space.Fd())
	return nil
}

var (
	errIncomplete = errors.New("descriptors are missing")
	errNoApp      = errors.New("application was not adopted")
	errNoPubs     = errors.New("application has no published map")
	errNoDevice   = errors.New("device is gone")
)

// lose forgets an item.
func (d *adoption) lose(item *keeper.Item, err error) {
	reason := "other"
	for known, name := range map[error]string{errIncomplete: "incomplete", errNoApp: "no_app",
		errNoPubs: "no_published_map", errNoDevice: "no_device"} {
		if errors.Is(err, known) {
			reason = name
		}
	}
	d.m.log.Error("not adopted", "item", item.Name, "error", err)
	d.m.counters.Adoption.Update(func(c *adminapi.Adoption) { c.Lost[reason]++ })
	d.m.journal.Delete(item.Name)
	if strings.HasPrefix(item.Name, handover.ItemPrefix) && len(item.Fds) == 1 {
		handover.AbandonSocket(item.Fds[0])
	}
	item.Close()
}

func (d *adoption) app(item *keeper.Item) error {
	var saved savedApp
	if err := json.Unmarshal(item.Blob, &saved); err != nil {
		return err
	}
	if len(item.Fds) != 3 || saved.ID >= abi.MaxApps {
		return errIncomplete
	}
	m := d.m
	pub, err := m.path.AppPubs(uint32(saved.ID))
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return errNoPubs
	}
	if err != nil {
		return err
	}
	a := &App{m: m, id: saved.ID, generation: saved.Generation, comm: saved.Comm, pub: pub,
		peer: control.Peer{Pid: saved.Pid, Uid: saved.Uid, Pidfd: item.Fds[0]}, wake: item.Fds[2],
		workers: make(chan struct{}, maxWorkers), gone: make(chan struct{}), history: make(map[uint64]handover.Note)}
	if a.arena, err = arena.Adopt(item.Fds[1]); err == nil {
		a.stop, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	}
	if err != nil {
		pub.Close()
		return err
	}
	item.Fds = nil
	m.mu.Lock()
	m.apps[a.id] = a
	m.mu.Unlock()
	a.save()
	m.counters.Adoption.Update(func(c *adminapi.Adoption) { c.Apps++ })
	m.log.Info("application adopted", "app", a.id, "pid", a.peer.Pid, "comm", a.comm)
	return nil
}

// owner finds an adopted application.
func (d *adoption) owner(id uint16) (*App, error) {
	if id >= abi.MaxApps || d.m.apps[id] == nil {
		return nil, errNoApp
	}
	return d.m.apps[id], nil
}

func (d *adoption) rings(item *keeper.Item) error {
	var saved savedRings
	if err := json.Unmarshal(item.Blob, &saved); err != nil {
		return err
	}
	a, err := d.owner(saved.App)
	if err != nil {
		return err
	}
	if len(saved.Sockets) == 0 || len(item.Fds) != 1+len(saved.Sockets) {
		return errIncomplete
	}
	r := &rings{device: saved.Device, direct: saved.Direct, made: saved.Made}
	sockets := make([]xsk.Socket, len(saved.Sockets))
	for i, number := range saved.Sockets {
		sockets[i] = xsk.Socket{Fd: item.Fds[1+i], Ring: number}
	}
	r.set, err = xsk.Adopt(item.Fds[0], saved.Device.Queues, sockets)
	item.Fds = nil
	if err != nil {
		return err
	}
	for _, s := range r.set.Sockets {
		if err := d.m.path.SetXsk(uint32(a.id), s.Ring, s.Fd); err != nil {
			d.m.log.Warn("ring not adopted", "app", a.id, "ring", s.Ring, "error", err)
		}
	}
	d.devices(a, r, &saved)
	a.rings = r
	if r.direct != none {
		d.m.hold(r.device.Ifindex, a)
	}
	a.saveRings(r)
	return nil
}

// devices takes over taps and pair, with new programs.
func (d *adoption) devices(a *App, r *rings, saved *savedRings) {
	for _, t := range saved.Taps {
		l, err := d.m.path.AdoptTap(t.Ifindex, t.Name)
		if err != nil {
			d.m.log.Warn("tap not adopted", "app", a.id, "tap", t.Name, "error", err)
		}
		d.private[t.Name] = l != nil
		r.taps = append(r.taps, ownTap{t.Ifindex, t.Name, l})
	}
	if saved.Pair == nil {
		return
	}
	l, err := d.m.path.AdoptRelay(saved.Pair.Far, saved.Pair.Name)
	if err != nil {
		d.m.log.Warn("pair not adopted", "app", a.id, "pair", saved.Pair.Name, "error", err)
	}
	d.private[saved.Pair.Name] = l != nil
	r.pair = &ownPair{saved.Pair.Pair, saved.Pair.Name, l}
}

func (d *adoption) slot(item *keeper.Item) error {
	app, index, err := handover.AdoptedSlot(item.Blob)
	if err != nil {
		return err
	}
	a, err := d.owner(app)
	if err != nil {
		return err
	}
	if len(item.Fds) != 1 {
		return errIncomplete
	}
	s, err := handover.Adopt(&d.m.env, a, a.arena, item.Blob, item.Fds[0])
	if err != nil {
		return err
	}
	item.Fds = nil
	a.slots[index] = s
	d.slots, d.owners = append(d.slots, s), append(d.owners, a)
	d.records[s.Record()] = true
	return nil
}

// sweep removes from the maps what belongs to nobody: the last daemon died when
// it was about to journal or to remove it. Generations go on far from those in
// use.
func (d *adoption) sweep() error {
	m := d.m
	d.m.path.SweepPrivate(d.private)
	for id := range uint32(abi.MaxApps) {
		if m.apps[id] != nil {
			continue
		}
		if err := errors.Join(m.path.RevokeApp(id), m.path.RemoveApp(id), m.path.DeletePair(id)); err != nil {
			return err
		}
	}
	if err := m.path.Sweep(d.records); err != nil {
		return err
	}
	const apart = 1 << 24
	for start := rand.Uint32(); ; start = rand.Uint32() {
		clear := true
		for _, s := range d.slots {
			clear = clear && s.LastGeneration()-start > apart
		}
		for _, a := range m.apps {
			clear = clear && (a == nil || a.generation-start > apart)
		}
		if clear {
			m.generation.Store(start)
			return nil
		}
	}
}

// recover goes on with every connection, and with the applications' lives.
func (d *adoption) recover() {
	for i, s := range d.slots {
		kind, err := s.Recover()
		if err != nil {
			d.m.log.Error("connection recovered with an error", "app", d.owners[i].id, "slot", s.Index(), "kind", kind, "error", err)
		}
		d.m.counters.Adoption.Update(func(c *adminapi.Adoption) {
			c.Conns++
			c.Recovered[string(kind)]++
		})
		d.m.log.Info("connection adopted", "app", d.owners[i].id, "slot", s.Index(), "as", kind)
	}
	for i, s := range d.slots {
		if a := d.owners[i]; !a.dead() {
			a.order[s.Index()].do(func() {
				s.Resume()
				s.Requested()
			}, true)
		}
	}
	for _, a := range d.m.list() {
		go a.awaitDeath()
	}
}

// dead says whether the process has ended.
func (a *App) dead() bool {
	poll := []unix.PollFd{{Fd: int32(a.peer.Pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if err != unix.EINTR { // a signal of Go's scheduler, even without waiting
			return err != nil || n > 0
		}
	}
}

// resume takes up the session of a program that the last daemon served.
func (m *Manager) resume(s *control.Session, r *abi.MsgRegister) *App {
	a := m.resumable(s, r)
	if a == nil {
		m.log.Info("a program wants to go on with what is not known here", "pid", s.Peer.Pid)
		m.refuse(s, abi.PathReasonRestart)
		return nil
	}
	unix.Close(s.Peer.Pidfd) // we have one
	s.Peer.Pidfd = -1
	a.mu.Lock()
	if a.session != nil {
		a.session.Stop()
	}
	a.session = s
	a.mu.Unlock()
	if r.Flags&abi.RegisterRings == 0 {
		a.dropRings()
	}
	a.answerRequests()
	if err := a.greet(s); err != nil {
		m.log.Warn("application left while it resumed its session", "pid", s.Peer.Pid, "error", err)
	}
	m.counters.Adoption.Update(func(c *adminapi.Adoption) { c.Resumed++ })
	m.log.Info("session resumed", "app", a.id, "pid", a.peer.Pid, "comm", a.comm)
	return a
}

// resumable finds the application of a process that lives: another one with the
// same number cannot be registered as its own successor.
func (m *Manager) resumable(s *control.Session, r *abi.MsgRegister) *App {
	for _, a := range m.list() {
		if uint32(a.id) != r.App || a.peer.Pid != s.Peer.Pid {
			continue
		}
		if a.generation != r.Generation || a.dead() || r.Flags&abi.RegisterRings != 0 && !a.hasRings() {
			continue // the last: they could not be adopted
		}
		return a
	}
	return nil
}

func (a *App) hasRings() bool {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	return a.rings != nil
}

// dropRings takes back rings that the last daemon made and did not deliver.
func (a *App) dropRings() {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	if a.rings == nil {
		return
	}
	a.m.unhold(a.rings.device.Ifindex, a)
	a.closeRings(a.rings)
	a.rings = nil
}

// answerRequests does what the program asked for while nobody heard it. It asks
// for nothing more until it is told that its session is resumed.
func (a *App) answerRequests() {
	for index := range uint32(abi.AppSlots) {
		if index < abi.FirstSlot || a.arena.Slot(index).Phase() == abi.PhaseFree {
			continue
		}
		if s := a.slot(index); s != nil {
			a.order[index].do(s.Requested, a.arena.Slot(index).Phase() == abi.PhaseDemoteReq)
		}
	}
}

// dismissStale ends applications whose process begins anew: it has no session
// with them any more.
func (m *Manager) dismissStale(pid int) {
	for _, a := range m.list() {
		a.mu.Lock()
		stale := a.peer.Pid == pid && a.session == nil
		a.mu.Unlock()
		if stale {
			one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
			_, _ = unix.Write(a.stop, one) // the counter is not full
			<-a.gone
		}
	}
}

// emptyRetired gives the connections on devices that are not configured any more
// back to the kernel.
func (m *Manager) emptyRetired() {
	for _, dev := range m.path.Retired() {
		on := func(s *handover.Slot) (uint32, bool) { return s.OnDevice(dev.Ifindex) }
		left := 0
		for _, a := range m.list() {
			a.pleaseDemote(abi.PathReasonDevice, on)
			for _, s := range a.activeSlots() {
				if _, fast := on(s); fast {
					left++
				}
			}
		}
		if left == 0 {
			m.path.Dismiss(dev.Ifindex)
			m.log.Info("device is not served any more", "device", dev.Name)
		}
	}
}
