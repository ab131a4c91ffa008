// SPDX-License-Identifier: Apache-2.0

// Package nexthop keeps the table of next hops that the egress program sends
// by. Connection records hold an index into it, so that a neighbour's new MAC
// address is one write. The kernel sends nothing to these neighbours itself
// any more, so their entries are made managed: the kernel keeps them resolved.
package nexthop

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// Why an address has no next hop here.
var (
	ErrLocal      = errors.New("address is this host's own")
	ErrNoDevice   = errors.New("route leaves by a device that is not served")
	ErrUnresolved = errors.New("next hop is not resolved")
	ErrMultipath  = errors.New("route has several next hops")
	ErrFull       = errors.New("next-hop table is full")
)

// Device is a device that is served.
type Device struct {
	Ifindex int
	// Port is its index in the map of devices to send by.
	Port uint32
	MTU  int
	MAC  net.HardwareAddr
}

// Hop is what a connection needs to know of its next hop.
type Hop struct {
	Index   uint16
	Device  int // ifindex
	Gateway netip.Addr
}

type key struct {
	device  int
	gateway netip.Addr
}

type entry struct {
	index uint16
	users int
	mac   net.HardwareAddr
}

// Table is the daemon's next-hop table.
type Table struct {
	write func(index uint32, hop abi.Hop) error

	mu      sync.Mutex
	devices map[int]Device
	entries map[key]*entry
	used    [abi.MaxHops]bool
}

// NewTable makes an empty table whose entries reach the map through write.
func NewTable(write func(index uint32, hop abi.Hop) error) *Table {
	return &Table{write: write, devices: make(map[int]Device), entries: make(map[key]*entry)}
}

// SetDevice adds a device or takes over its new addresses.
func (t *Table) SetDevice(d Device) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.devices[d.Ifindex] = d
	for k, e := range t.entries {
		if k.device != d.Ifindex {
			continue
		}
		if err := t.publish(k, e); err != nil {
			return err
		}
	}
	return nil
}

// Acquire finds the next hop of a connection and holds it until Release.
func (t *Table) Acquire(local, remote netip.Addr) (Hop, error) {
	k, err := t.route(local, remote)
	if err != nil {
		return Hop{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, served := t.devices[k.device]; !served {
		return Hop{}, ErrNoDevice
	}
	e, ok := t.entries[k]
	if !ok {
		e, err = t.add(k)
	} else if e.users == 0 {
		err = t.renew(k, e)
	}
	if err != nil {
		return Hop{}, err
	}
	e.users++
	return Hop{e.index, k.device, k.gateway}, nil
}

// Adopt holds a hop that an earlier daemon acquired, under the index that its
// connections' records have. Until the kernel tells of the neighbour, the map's
// addresses stay as they are.
func (t *Table) Adopt(h Hop, as *abi.Hop) {
	k := key{h.Device, h.Gateway}
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[k]
	if !ok || e.index != h.Index {
		e = &entry{index: h.Index, mac: slices.Clone(as.Dmac[:])}
		t.entries[k], t.used[h.Index] = e, true
	}
	e.users++
}

// Release gives a hop back. Its entry stays for the next connection, until
// the table is full.
func (t *Table) Release(h Hop) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, e := range t.entries {
		if e.index == h.Index && k.device == h.Device {
			e.users--
			return
		}
	}
}

// Look is one look at many connections' routes: it asks the kernel once for
// each pair of addresses. Not for use by several goroutines.
type Look struct {
	table  *Table
	routes map[[2]netip.Addr]key // the zero key: none that serves
}

// NewLook begins a look at the routes as they are now.
func (t *Table) NewLook() *Look {
	return &Look{table: t, routes: make(map[[2]netip.Addr]key)}
}

// Still says whether a connection's route is what it was when acquired.
func (l *Look) Still(h Hop, local, remote netip.Addr) bool {
	pair := [2]netip.Addr{local, remote}
	k, ok := l.routes[pair]
	if !ok {
		var err error
		if k, err = l.table.route(local, remote); err != nil {
			k = key{}
		}
		l.routes[pair] = k
	}
	l.table.mu.Lock()
	defer l.table.mu.Unlock()
	e, ok := l.table.entries[k]
	return ok && e.index == h.Index && k.device == h.Device
}

// route asks the kernel where a connection's segments leave.
func (t *Table) route(local, remote netip.Addr) (key, error) {
	r, err := getRoute(local, remote, false)
	if err != nil {
		return key{}, err
	}
	if r.Type != unix.RTN_UNICAST {
		return key{}, ErrLocal
	}
	gateway := remote
	if gw, ok := netip.AddrFromSlice(r.Gw); ok {
		gateway = gw.Unmap()
	}
	// The answer to a look-up is one next hop. Which of several another
	// packet of the connection takes, the kernel decides by its ports.
	entry, err := getRoute(local, remote, true)
	if err != nil {
		return key{}, err
	}
	if len(entry.MultiPath) > 1 {
		return key{}, ErrMultipath
	}
	return key{r.LinkIndex, gateway}, nil
}

// getRoute asks for what a look-up gives, or for the entry of the routing table
// that it finds.
func getRoute(local, remote netip.Addr, entry bool) (netlink.Route, error) {
	routes, err := netlink.RouteGetWithOptions(remote.AsSlice(),
		&netlink.RouteGetOptions{SrcAddr: local.AsSlice(), FIBMatch: entry})
	if err != nil {
		return netlink.Route{}, fmt.Errorf("route from %v to %v: %w", local, remote, err)
	}
	if len(routes) != 1 {
		return netlink.Route{}, ErrMultipath
	}
	return routes[0], nil
}

// add makes an entry for a neighbour that the kernel has resolved.
func (t *Table) add(k key) (*entry, error) {
	if err := manage(k); err != nil {
		return nil, err
	}
	mac, err := resolve(k)
	if err != nil {
		return nil, err
	}
	index, err := t.freeIndex()
	if err != nil {
		return nil, err
	}
	e := &entry{index: index, mac: mac}
	if err := t.publish(k, e); err != nil {
		return nil, err
	}
	t.used[index], t.entries[k] = true, e
	return e, nil
}

// renew makes an entry that nobody used for a while true again: the kernel may
// have forgotten the neighbour meanwhile, and with it that it is managed.
func (t *Table) renew(k key, e *entry) error {
	if err := manage(k); err != nil {
		return err
	}
	mac, err := resolve(k)
	if err != nil {
		return err
	}
	e.mac = mac
	return t.publish(k, e)
}

func (t *Table) freeIndex() (uint16, error) {
	for i, used := range t.used {
		if !used {
			return uint16(i), nil
		}
	}
	for k, e := range t.entries {
		if e.users == 0 {
			delete(t.entries, k)
			return e.index, nil
		}
	}
	return 0, ErrFull
}

func (t *Table) publish(k key, e *entry) error {
	d := t.devices[k.device]
	hop := abi.Hop{Valid: 1, Port: d.Port, Mtu: uint16(min(d.MTU, 1<<16-1))}
	if len(e.mac) != len(hop.Dmac) || len(d.MAC) != len(hop.Smac) {
		hop.Valid = 0
	}
	copy(hop.Dmac[:], e.mac)
	copy(hop.Smac[:], d.MAC)
	if err := t.write(uint32(e.index), hop); err != nil {
		return fmt.Errorf("write next hop %v on interface %d: %w", k.gateway, k.device, err)
	}
	return nil
}

// setNeighbour takes over what the kernel says of a neighbour.
func (t *Table) setNeighbour(n *netlink.Neigh) error {
	gateway, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return nil
	}
	k := key{n.LinkIndex, gateway.Unmap()}
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[k]
	if !ok || !usable(n) || string(e.mac) == string(n.HardwareAddr) {
		// A neighbour that does not answer keeps its address: if it is
		// really gone, time-outs demote its connections.
		return nil
	}
	e.mac = n.HardwareAddr
	return t.publish(k, e)
}

// neighbourGone has a neighbour in use resolved anew that the kernel forgot: a
// link went down, an administrator flushed the table.
func (t *Table) neighbourGone(n *netlink.Neigh) error {
	gateway, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return nil
	}
	k := key{n.LinkIndex, gateway.Unmap()}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.entries[k]; !ok || e.users == 0 {
		return nil
	}
	return manage(k)
}

func usable(n *netlink.Neigh) bool {
	const resolved = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY |
		netlink.NUD_PROBE | netlink.NUD_PERMANENT | netlink.NUD_NOARP
	return n.State&resolved != 0 && len(n.HardwareAddr) == 6
}

// manage has the kernel keep a neighbour resolved (Linux 5.16). An entry that
// an operator made permanent needs no keeping and cannot be changed so.
func manage(k key) error {
	err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: k.device, Family: unix.AF_INET, IP: k.gateway.AsSlice(),
		FlagsExt: netlink.NTF_EXT_MANAGED,
	})
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("keep neighbour %v resolved: %w", k.gateway, err)
	}
	return nil
}

func resolve(k key) (net.HardwareAddr, error) {
	list, err := netlink.NeighList(k.device, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list neighbours of interface %d: %w", k.device, err)
	}
	for i := range list {
		if list[i].IP.Equal(k.gateway.AsSlice()) && usable(&list[i]) {
			return list[i].HardwareAddr, nil
		}
	}
	return nil, ErrUnresolved
}

// refresh reads every neighbour anew, after events may have been lost.
func (t *Table) refresh() error {
	list, err := netlink.NeighList(0, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for i := range list {
		if err := t.setNeighbour(&list[i]); err != nil {
			return err
		}
	}
	return nil
}
