// SPDX-License-Identifier: Apache-2.0

// Package app keeps the registered applications: what each has been given, and
// how it is taken back when the application dies.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/config"
	"github.com/etran-go/etran/runtime/internal/control"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/datapath"
	"github.com/etran-go/etran/runtime/internal/handover"
	"github.com/etran-go/etran/runtime/internal/keeper"
	"github.com/etran-go/etran/runtime/internal/nexthop"
	"github.com/etran-go/etran/runtime/internal/taps"
)

// Manager serves all applications.
type Manager struct {
	cfg      *config.Config
	path     *datapath.DataPath
	space    *taps.Space
	hops     *nexthop.Table
	counters counters.Counters
	env      handover.Env
	journal  handover.Journal
	log      *slog.Logger
	started  time.Time

	generation atomic.Uint32
	strays     uint64 // when the timers last looked

	mu      sync.Mutex
	apps    [abi.MaxApps]*App
	holders map[int]*App // by ifindex: who has the queues

	sessions     int
	userSessions map[uint32]int
}

// NewManager makes a manager for an attached data path, whose applications do
// not outlive it.
func NewManager(c *config.Config, path *datapath.DataPath, log *slog.Logger) (*Manager, error) {
	return NewLasting(c, path, nil, nil, log)
}

// NewLasting makes a manager whose applications and connections outlive it: all
// that another one needs is in k. items are what the last one left there; their
// descriptors become the manager's.
func NewLasting(c *config.Config, path *datapath.DataPath, k *keeper.Client, items []keeper.Item, log *slog.Logger) (*Manager, error) {
	m, err := newManager(c, path, k, log)
	if err != nil {
		keeper.CloseAll(items)
		return nil, err
	}
	return m, m.adopt(items)
}

func newManager(c *config.Config, path *datapath.DataPath, k *keeper.Client, log *slog.Logger) (*Manager, error) {
	m := &Manager{
		cfg: c, path: path, journal: k, log: log, started: time.Now(),
		hops:    nexthop.NewTable(path.SetHop),
		holders: make(map[int]*App), userSessions: make(map[uint32]int),
	}
	// A generation of a dead daemon's must not come again while its programs
	// may still hold it.
	m.generation.Store(rand.Uint32())
	cookie, err := netnsCookie()
	if err != nil {
		return nil, err
	}
	e := &m.env
	e.Path, e.Hops, e.Device, e.Policy, e.Counters = path, m.hops, m.device, &c.Policy, &m.counters
	e.Journal = m.journal
	e.Log, e.Sockets, e.NetnsCookie, e.NextGeneration = log, path.Sockets(), cookie, m.nextGeneration
	for _, d := range path.Devices() {
		if err := m.hops.SetDevice(hopDevice(d)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read SO_NETNS_COOKIE: %w", err)
	}
	return cookie, nil
}

func hopDevice(d datapath.Device) nexthop.Device {
	return nexthop.Device{Ifindex: d.Ifindex, Port: d.Port, MTU: d.MTU, MAC: d.MAC}
}

func (m *Manager) device(ifindex int) (handover.Device, bool) {
	d, ok := m.path.Device(ifindex)
	return handover.Device{Ifindex: d.Ifindex, MTU: d.MTU, VerifyChecksum: d.VerifyChecksum}, ok
}

func (m *Manager) nextGeneration() uint32 {
	for {
		if g := m.generation.Add(1); g != 0 {
			return g
		}
	}
}

// Watch follows devices, routes, neighbours and timers until ctx ends.
func (m *Manager) Watch(ctx context.Context) error {
	go m.runTimers(ctx)
	return m.hops.Watch(ctx, m.log, nexthop.Events{Link: m.linkChanged, Routes: m.routesChanged})
}

func (m *Manager) linkChanged(l netlink.Link, deleted bool) {
	if change, served := m.path.LinkChanged(l, deleted); served {
		m.deviceChanged(change)
	}
}

func (m *Manager) deviceChanged(c datapath.Change) {
	d := c.Device
	if err := m.hops.SetDevice(hopDevice(d)); err != nil {
		m.log.Error("next hops not updated", "device", d.Name, "error", err)
	}
	if !c.Leave {
		return
	}
	m.log.Warn("device changed: its connections go back to the kernel", "device", d.Name,
		"mtu", d.MTU, "queues", d.Queues, "usable", d.Usable)
	for _, a := range m.list() {
		a.pleaseDemote(abi.PathReasonDevice, func(s *handover.Slot) (uint32, bool) { return s.OnDevice(c.Former) })
	}
}

func (m *Manager) routesChanged() {
	look := m.hops.NewLook()
	for _, a := range m.list() {
		a.pleaseDemote(abi.PathReasonRoute, func(s *handover.Slot) (uint32, bool) { return s.Rerouted(look) })
	}
}

// list returns the live applications.
func (m *Manager) list() []*App {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []*App
	for _, a := range m.apps {
		if a != nil {
			list = append(list, a)
		}
	}
	return list
}

// Sessions of one user and of all. Each takes a thread, and anybody may
// connect.
const (
	maxUserSessions = 4 * abi.MaxApps
	maxSessions     = 16 * abi.MaxApps
	// Whoever connects says soon what for.
	firstMessage = 5 * time.Second
)

// Accept serves programs until the listener is closed.
func (m *Manager) Accept(l *control.Listener) {
	for {
		s, err := l.Accept()
		if err != nil {
			return // closed
		}
		if !m.admit(s.Peer.Uid) {
			m.log.Debug("too many sessions", "uid", s.Peer.Uid)
			unix.Close(s.Peer.Pidfd)
			s.Close()
			continue
		}
		go func() {
			defer m.dismiss(s.Peer.Uid)
			m.serve(s)
		}()
	}
}

func (m *Manager) admit(uid uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sessions >= maxSessions || m.userSessions[uid] >= maxUserSessions {
		return false
	}
	m.sessions++
	m.userSessions[uid]++
	return true
}

func (m *Manager) dismiss(uid uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions--
	if m.userSessions[uid]--; m.userSessions[uid] == 0 {
		delete(m.userSessions, uid)
	}
}

// serve speaks with one process: either it registers as an application, or it
// only asks for the demotion of sockets that other processes own.
func (m *Manager) serve(s *control.Session) {
	defer s.Close()
	a := m.await(s)
	if a == nil {
		unix.Close(s.Peer.Pidfd)
		return
	}
	a.run(s)
}

// await handles messages until the process registers; nil if it does not.
func (m *Manager) await(s *control.Session) *App {
	if err := s.SetDeadline(time.Now().Add(firstMessage)); err != nil {
		return nil
	}
	limiter := rate{perSecond: m.cfg.Policy.MessageRate, last: time.Now()}
	for {
		msg, err := s.Receive()
		if err != nil {
			return nil
		}
		limiter.wait()
		switch msg.Type {
		case abi.MsgTypeDemoteForeign:
			m.demoteForeign(s, msg.Fd)
		case abi.MsgTypeRegister:
			if err := s.SetDeadline(time.Time{}); err != nil {
				return nil
			}
			if msg.Register.Flags&abi.RegisterResume != 0 {
				return m.resume(s, &msg.Register)
			}
			return m.register(s, &msg)
		default:
			msg.Close()
			return nil
		}
	}
}

// register makes an application of the process, or tells it why not.
func (m *Manager) register(s *control.Session, msg *control.Message) *App {
	a, reason, err := m.newApp(s, msg.Comm())
	if err != nil {
		m.log.Error("application not registered", "pid", s.Peer.Pid, "error", err)
	}
	if a == nil {
		m.refuse(s, reason)
		return nil
	}
	go a.awaitDeath()
	if err := a.greet(s, a.arena.Fd(), a.pub.FD(), a.wake); err != nil {
		m.log.Warn("application left while it registered", "pid", s.Peer.Pid, "error", err)
	}
	m.log.Info("application registered", "app", a.id, "pid", a.peer.Pid, "uid", a.peer.Uid, "comm", a.comm)
	return a
}

func (m *Manager) refuse(s *control.Session, reason abi.PathReason) {
	m.counters.Refused.Add(reason)
	if err := s.Send(control.Refused(reason)); err != nil {
		m.log.Debug("refusal not delivered", "pid", s.Peer.Pid, "error", err)
	}
}

// greet tells the application that it is registered; one that resumes its
// session gets no descriptors, as it has them.
func (a *App) greet(s *control.Session, fds ...int) error {
	return s.Send(control.Registered(abi.MsgRegistered{
		App: uint32(a.id), Generation: a.generation,
		Slots:        uint32(abi.FirstSlot + a.m.cfg.Policy.MaxConns),
		PromoteAfter: a.m.cfg.PromoteAfter, PromoteBytes: a.m.cfg.PromoteBytes, SpinUs: a.m.cfg.SpinUs,
		ArenaSize: a.arena.Size(), PubSize: pubSize,
	}), fds...)
}

func (m *Manager) newApp(s *control.Session, comm string) (*App, abi.PathReason, error) {
	if !m.cfg.Policy.AllowsUid(s.Peer.Uid) {
		return nil, abi.PathReasonPolicy, nil
	}
	m.dismissStale(s.Peer.Pid)
	a := &App{m: m, peer: s.Peer, comm: comm, generation: m.nextGeneration(), session: s, wake: -1, stop: -1,
		workers: make(chan struct{}, maxWorkers), gone: make(chan struct{}),
		history: make(map[uint64]handover.Note)}
	if reason := m.addApp(a); reason != abi.PathReasonOk {
		return nil, reason, nil
	}
	if err := a.open(); err != nil {
		a.close()
		m.removeApp(a)
		return nil, abi.PathReasonSyscall, err
	}
	return a, abi.PathReasonOk, nil
}

// addApp finds an application id.
func (m *Manager) addApp(a *App) abi.PathReason {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.env.Stopping.Load() {
		return abi.PathReasonShutdown
	}
	if a.peer.Uid != 0 && m.userApps(a.peer.Uid) >= m.cfg.Policy.MaxUserApps {
		return abi.PathReasonLimit
	}
	for id := range m.cfg.Policy.MaxApps {
		if m.apps[id] == nil {
			a.id = uint16(id)
			m.apps[id] = a
			return abi.PathReasonOk
		}
	}
	return abi.PathReasonLimit
}

// userApps counts a user's applications; m.mu is held.
func (m *Manager) userApps(uid uint32) int {
	n := 0
	for _, a := range m.apps {
		if a != nil && a.peer.Uid == uid {
			n++
		}
	}
	return n
}

func (m *Manager) removeApp(a *App) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.apps[a.id] = nil
	for ifindex, holder := range m.holders {
		if holder == a {
			delete(m.holders, ifindex)
			go m.offerQueues(ifindex)
		}
	}
}

// hold claims a device's queues for an application.
func (m *Manager) hold(ifindex int, a *App) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if holder := m.holders[ifindex]; holder != nil && holder != a {
		return false
	}
	m.holders[ifindex] = a
	return true
}

func (m *Manager) unhold(ifindex int, a *App) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holders[ifindex] == a {
		delete(m.holders, ifindex)
	}
}

// How long a stopping daemon waits for programs to give connections back.
const (
	stopPatience = 3 * time.Second
	stopPoll     = 5 * time.Millisecond
)

// Stop gives every connection back to the kernel.
func (m *Manager) Stop() {
	m.env.Stopping.Store(true)
	apps := m.list()
	var asked []*App
	for _, a := range apps {
		if a.pleaseDemote(abi.PathReasonShutdown, (*handover.Slot).Generation) > 0 {
			asked = append(asked, a)
		}
	}
	deadline := time.Now().Add(stopPatience)
	for time.Now().Before(deadline) && fastConns(asked) > 0 {
		time.Sleep(stopPoll)
	}
	for _, a := range apps {
		for _, s := range a.activeSlots() {
			s.DemoteAlone(abi.PathReasonShutdown)
		}
		a.giveUpRings()
	}
	m.space.Close()
	m.log.Info("all connections are the kernel's", "promotions", m.counters.Promotions.Load(),
		"seized", m.counters.Seized.Load(), "stuck", m.counters.Stuck.Load())
}

func fastConns(apps []*App) int {
	n := 0
	for _, a := range apps {
		for _, s := range a.activeSlots() {
			if !s.OnKernel() {
				n++
			}
		}
	}
	return n
}

// demoteForeign has the owner of a socket give its connection back, because
// the process at the other end of the session wants to use it.
func (m *Manager) demoteForeign(s *control.Session, fd int) {
	err := m.awaitKernel(fd)
	unix.Close(fd)
	var errno unix.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = unix.EIO
	}
	if err := s.Send(control.Done(abi.MsgTypeDone, int32(errno))); err != nil {
		m.log.Debug("answer not delivered", "pid", s.Peer.Pid, "error", err)
	}
}

// The asking library waits for two seconds.
const (
	foreignPatience = 1900 * time.Millisecond
	foreignPause    = 50 * time.Millisecond
)

func (m *Manager) awaitKernel(fd int) error {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("read SO_COOKIE: %w", err)
	}
	asked, pause := false, time.Millisecond
	for deadline := time.Now().Add(foreignPatience); time.Now().Before(deadline); time.Sleep(pause) {
		a, slot := m.find(cookie)
		if slot == nil {
			return nil
		}
		// Looking costs time, and anybody can make us look.
		pause = min(2*pause, foreignPause)
		if generation, fast := slot.Generation(); fast && !asked {
			asked = true
			a.please(abi.MsgTypePleaseDemote, slot, generation, abi.PathReasonFork)
		} else if slot.OnKernel() {
			return nil
		}
	}
	return unix.ETIMEDOUT
}

func (m *Manager) find(cookie uint64) (*App, *handover.Slot) {
	for _, a := range m.list() {
		for _, s := range a.activeSlots() {
			if c, ok := s.Cookie(); ok && c == cookie {
				return a, s
			}
		}
	}
	return nil, nil
}
