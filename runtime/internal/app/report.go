// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/runtime/internal/counters"
	"github.com/etran-go/etran/runtime/internal/handover"
)

// Viewer is the user who asks: root and the daemon's own user see everything,
// others their own applications.
type Viewer struct {
	Uid uint32
	All bool
}

func (v Viewer) sees(a *App) bool { return v.All || v.Uid == a.peer.Uid }

func (m *Manager) visible(v Viewer) []*App {
	var list []*App
	for _, a := range m.list() {
		if v.sees(a) {
			list = append(list, a)
		}
	}
	return list
}

// Status says what the daemon serves, and whom.
func (m *Manager) Status(v Viewer) *adminapi.Status {
	s := &adminapi.Status{UptimeSeconds: time.Since(m.started).Seconds()}
	for _, d := range m.path.Devices() {
		s.Interfaces = append(s.Interfaces, adminapi.Interface{
			Name: d.Name, Ifindex: d.Ifindex, Queues: d.Queues, MTU: d.MTU,
			Mode: "native", Attached: d.Usable, Lost: d.Lost, Sharing: string(d.Sharing),
		})
	}
	for _, a := range m.visible(v) {
		s.Apps = append(s.Apps, a.status())
	}
	return s
}

func (a *App) status() adminapi.App {
	out := adminapi.App{ID: uint32(a.id), Pid: a.peer.Pid, Uid: a.peer.Uid, Comm: a.comm}
	a.claimMu.Lock()
	if a.rings != nil {
		out.Direct = a.rings.direct == ready
		out.Rings = map[bool]string{true: adminapi.RingsDirect, false: adminapi.RingsShared}[out.Direct]
	}
	a.claimMu.Unlock()
	for _, c := range a.conns(new(openSockets).closed) {
		out.Conns++
		if out.Rings == "" && c.Reason != "" {
			out.Reason = c.Reason
		}
	}
	return out
}

// SS lists the connections.
func (m *Manager) SS(v Viewer) *adminapi.SS {
	ss := &adminapi.SS{Conns: []adminapi.Conn{}}
	closed := new(openSockets).closed
	for _, a := range m.visible(v) {
		ss.Conns = append(ss.Conns, a.conns(closed)...)
	}
	return ss
}

// openSockets are the cookies of all TCP sockets of the namespace. Listing them
// takes milliseconds of a real-time thread: not before somebody asks.
type openSockets struct {
	once    sync.Once
	cookies map[uint64]bool // nil: the kernel does not tell
}

// closed says that there is no socket of the cookie any more.
func (o *openSockets) closed(cookie uint64) bool {
	o.once.Do(o.list)
	return o.cookies != nil && !o.cookies[cookie]
}

func (o *openSockets) list() {
	list, err := netlink.SocketDiagTCP(unix.AF_INET)
	if err != nil {
		return
	}
	o.cookies = make(map[uint64]bool, len(list))
	for _, s := range list {
		o.cookies[uint64(s.ID.Cookie[0])|uint64(s.ID.Cookie[1])<<32] = true
	}
}

// conns lists the application's connections: those that have a slot, and those
// that had one and are not closed.
func (a *App) conns(closed func(cookie uint64) bool) []adminapi.Conn {
	var list []adminapi.Conn
	present := map[uint64]bool{}
	for _, s := range a.activeSlots() {
		if n, ok := s.Note(); ok {
			present[n.Cookie] = true
			list = append(list, a.conn(fmt.Sprintf("%d:%d", a.id, s.Index()), n))
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for cookie, n := range a.history {
		switch {
		case present[cookie]:
		case closed(cookie):
			delete(a.history, cookie)
		default:
			list = append(list, a.conn(fmt.Sprintf("%d:s%d", a.id, cookie), n))
		}
	}
	return list
}

var stateNames = map[abi.FlowState]string{
	abi.FlowStateNone: "NONE", abi.FlowStateObserve: "OBSERVE",
	abi.FlowStateHold: "HOLD", abi.FlowStateActive: "ACTIVE",
}

func (a *App) conn(id string, n handover.Note) adminapi.Conn {
	c := adminapi.Conn{
		ID: id, App: uint32(a.id), Pid: a.peer.Pid, Comm: a.comm,
		Local: n.Local.String(), Remote: n.Remote.String(),
		Path: adminapi.PathKernel, State: stateNames[n.State],
		FastBytesIn: n.Traffic.FastBytesIn, FastBytesOut: n.Traffic.FastBytesOut,
		KernelBytesIn: n.Traffic.KernelBytesIn, KernelBytesOut: n.Traffic.KernelBytesOut,
		SegsIn: n.Traffic.FastSegsIn, SegsOut: n.Traffic.FastSegsOut,
		Retransmissions: n.Traffic.Retransmissions, RTTUs: n.SRTTUs,
	}
	switch {
	case n.Phase == abi.PhaseFast:
		c.Path = adminapi.PathFast
	case n.Reason != abi.PathReasonOk:
		c.Reason = n.Reason.String()
	}
	return c
}

// maxHistory bounds what is remembered of connections without a slot.
const maxHistory = 4096

// Remember keeps what is known of a socket whose slot ends.
func (a *App) Remember(n handover.Note) {
	n.State = abi.FlowStateNone
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.history) >= maxHistory {
		for cookie := range a.history { // any: they are for tools only
			delete(a.history, cookie)
			break
		}
	}
	a.history[n.Cookie] = n
}

// Recall finds the traffic of a socket that had a slot before.
func (a *App) Recall(cookie uint64) counters.Traffic {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.history[cookie].Traffic
}

// Stats returns the counters.
func (m *Manager) Stats() (*adminapi.Stats, error) {
	c := &m.counters
	drops, err := m.path.Drops()
	if err != nil {
		return nil, err
	}
	for name, n := range drops {
		if n == 0 {
			delete(drops, name)
		}
	}
	s := &adminapi.Stats{
		Promotions:        c.Promotions.Load(),
		PromotionsAborted: c.Aborted.Map(), PromotionsRefused: c.Refused.Map(), Demotions: c.Demotions.Map(),
		Drops:        drops,
		PromotePause: c.PromotePause.Quantiles(), DemotePause: c.DemotePause.Quantiles(),
		Seized: c.Seized.Load(), Stuck: c.Stuck.Load(),
		ClosedBehind: c.ClosedBehind.Load(), Destroyed: c.Destroyed.Load(),
		RedirectErrors: drops[abi.DropReasonRedirectRx.String()] + drops[abi.DropReasonRedirectTx.String()],
	}
	if s.Strays, err = m.path.Sockets().Strays(); err != nil {
		return nil, err
	}
	s.Adopted = c.Adoption.Count()
	t := m.traffic()
	s.FastSegsIn, s.FastSegsOut = t.FastSegsIn, t.FastSegsOut
	s.FastBytesIn, s.FastBytesOut = t.FastBytesIn, t.FastBytesOut
	s.KernelBytesIn, s.KernelBytesOut = t.KernelBytesIn, t.KernelBytesOut
	s.Retransmissions = t.Retransmissions
	return s, nil
}

// traffic sums up what ended and what goes on.
func (m *Manager) traffic() counters.Traffic {
	t := m.counters.Ended()
	for _, a := range m.list() {
		totals := a.arena.Totals()
		t.Add(counters.Traffic{KernelBytesIn: totals.KernelBytesIn, KernelBytesOut: totals.KernelBytesOut})
		for _, s := range a.activeSlots() {
			t.Add(s.LiveTraffic())
		}
	}
	return t
}

// Switch asks applications to promote or demote, and says what became of it.
func (m *Manager) Switch(v Viewer, r adminapi.SwitchRequest, t abi.MsgType) *adminapi.SwitchResult {
	result := &adminapi.SwitchResult{Refused: map[string]uint64{}}
	var asked []*handover.Slot
	for _, a := range m.visible(v) {
		asked = append(asked, a.askSwitch(r, t, result)...)
	}
	if t == abi.MsgTypePleaseDemote {
		awaitDemoted(asked, result)
	}
	return result
}

// askSwitch asks for every selected connection of one application.
func (a *App) askSwitch(r adminapi.SwitchRequest, t abi.MsgType, result *adminapi.SwitchResult) []*handover.Slot {
	if !r.All && r.Conn == "" && r.Pid != a.peer.Pid {
		return nil
	}
	var asked []*handover.Slot
	want := map[abi.MsgType]string{
		abi.MsgTypePleaseDemote: adminapi.PathFast, abi.MsgTypePleasePromote: adminapi.PathKernel}[t]
	kernel := 0
	// Whether what has no slot is still open does not matter: nothing is done to it.
	for _, c := range a.conns(func(uint64) bool { return false }) {
		if r.Conn != "" && r.Conn != c.ID {
			continue
		}
		result.Selected++
		slot, ok := a.byID(c.ID)
		switch {
		case c.Path != want:
			result.Refused[c.Path]++
		case t == abi.MsgTypePleasePromote && !ok && r.Conn != "":
			result.Refused[c.Reason]++ // has no slot to name it by
		case t == abi.MsgTypePleasePromote:
			kernel++
		case a.please(t, slot, 0, abi.PathReasonRequest):
			asked = append(asked, slot)
		default:
			result.Refused[abi.PathReasonNoDaemon.String()]++
		}
	}
	// Also those that the daemon has not heard of yet.
	if t == abi.MsgTypePleasePromote && (kernel > 0 || r.Conn == "") && a.please(t, nil, 0, abi.PathReasonRequest) {
		result.Switched += kernel
	}
	return asked
}

// byID finds the slot of "app:slot".
func (a *App) byID(id string) (*handover.Slot, bool) {
	_, text, _ := strings.Cut(id, ":")
	index, err := strconv.ParseUint(text, 10, 32)
	if err != nil || index >= abi.AppSlots {
		return nil, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.slots[index], a.slots[index] != nil
}

// The tool that asks waits for half a minute.
const switchPatience = 3 * time.Second

func awaitDemoted(slots []*handover.Slot, result *adminapi.SwitchResult) {
	deadline := time.Now().Add(switchPatience)
	for _, s := range slots {
		for {
			if s.OnKernel() {
				result.Switched++
				break
			}
			if time.Now().After(deadline) {
				result.Refused[abi.PathReasonBusy.String()]++
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}
