// SPDX-License-Identifier: Apache-2.0

// Package middlebox is a bad wire: it joins two network devices at layer 2 and
// drops, duplicates, corrupts and reorders the TCP segments between them, as
// often as it is told. The faults are made by eBPF programs (middlebox.bpf.c);
// which segments suffer depends on a seed and the segments' number only.
// Everything else (ARP, for one) passes untouched.
//
// A segment that others are to overtake, or that is to be late, takes a longer
// path: a tap device, at whose other end this process lets it wait and sends
// it on. So a middlebox lasts only as long as its process.
package middlebox

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Direction is one of a middlebox's two.
type Direction uint32

// The directions, between the devices that New was given.
const (
	AToB Direction = iota
	BToA
	directions
)

// Faults say what happens to the TCP segments of a direction. The zero value
// is a good wire.
type Faults struct {
	// Chances of each segment, per million; independent of each other.
	Drop, Duplicate, Corrupt, Reorder uint32
	// ReorderDelay is how much later than the others a reordered segment
	// comes.
	ReorderDelay time.Duration
	// Limit bounds each fault: not more than so many from now on. 0 = none.
	Limit uint64
	Seed  uint64
	// Delay of every segment. It costs this process a turn per segment.
	Delay time.Duration
	// Rate bounds the direction, in octets per second; 0 = no bound. What
	// waits is dropped when it would wait for longer than rateQueue.
	Rate uint64
}

// Counts are what happened to a direction's TCP segments so far.
type Counts struct {
	Segments, Octets                          uint64
	Dropped, Duplicated, Corrupted, Reordered uint64
}

// rateQueue is how long a segment may wait for its turn in a bounded direction.
const rateQueue = 50 * time.Millisecond

// Middlebox is one that exists.
type Middlebox struct {
	objects middleboxObjects
	links   []link.Link
	routes  *netlink.Handle
	side    [directions]side
}

// side is what belongs to one direction.
type side struct {
	out          netlink.Link
	longer, late *lane
	limited      bool // out has a queueing discipline that bounds its rate
}

// New makes a middlebox of two veth interfaces of the calling thread's network
// namespace. They must not merge segments: see ETHTOOL_SGRO.
func New(a, b string) (*Middlebox, error) {
	m := new(Middlebox)
	if err := m.build(a, b); err != nil {
		return nil, errors.Join(fmt.Errorf("making a middlebox of %s and %s: %w", a, b, err), m.Close())
	}
	return m, nil
}

func (m *Middlebox) build(a, b string) error {
	if err := loadMiddleboxObjects(&m.objects, nil); err != nil {
		return err
	}
	var err error
	// Bound to this namespace: Set can be called from any thread.
	if m.routes, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	for _, d := range []struct {
		direction      Direction
		in, out        string
		forward, leave *ebpf.Program
	}{
		{AToB, a, b, m.objects.ToB, m.objects.LeaveToB},
		{BToA, b, a, m.objects.ToA, m.objects.LeaveToA},
	} {
		if err := m.buildSide(d.direction, d.in, d.out, d.forward, d.leave); err != nil {
			return err
		}
	}
	return nil
}

func (m *Middlebox) buildSide(d Direction, in, out string, forward, leave *ebpf.Program) error {
	s := &m.side[d]
	from, err := m.routes.LinkByName(in)
	if err != nil {
		return fmt.Errorf("finding %s: %w", in, err)
	}
	if s.out, err = m.routes.LinkByName(out); err != nil {
		return fmt.Errorf("finding %s: %w", out, err)
	}
	for _, l := range []struct {
		lane **lane
		name string
	}{{&s.longer, "longer-" + out}, {&s.late, "late-" + out}} {
		if *l.lane, err = openLane(l.name); err != nil {
			return err
		}
		if err := m.attach((*l.lane).ifindex, leave); err != nil {
			return err
		}
	}
	if err := m.Set(d, Faults{}); err != nil {
		return err
	}
	if err := m.poll(from.Attrs().Index); err != nil {
		return err
	}
	return m.attach(from.Attrs().Index, forward)
}

// attach lets a program see what comes in on a device.
func (m *Middlebox) attach(ifindex int, p *ebpf.Program) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: p, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return fmt.Errorf("attaching to device %d: %w", ifindex, err)
	}
	m.links = append(m.links, l)
	return nil
}

// poll makes a veth take the frames that the other end's XDP program redirects
// to it.
func (m *Middlebox) poll(ifindex int) error {
	l, err := link.AttachXDP(link.XDPOptions{Program: m.objects.Pass, Interface: ifindex})
	if err != nil {
		return fmt.Errorf("attaching to device %d: %w", ifindex, err)
	}
	m.links = append(m.links, l)
	return nil
}

// Set changes a direction's faults, at once. The segments' numbers go on.
func (m *Middlebox) Set(d Direction, f Faults) error {
	s := &m.side[d]
	if err := m.setRate(s, f.Rate); err != nil {
		return err
	}
	s.late.delay.Store(int64(f.Delay))
	s.longer.delay.Store(int64(f.Delay + f.ReorderDelay))
	out := uint32(s.out.Attrs().Index)
	usual := out
	if f.Delay > 0 {
		usual = uint32(s.late.ifindex)
	}
	before, err := m.Counts(d)
	if err != nil {
		return err
	}
	limit := func(have uint64) uint64 {
		if f.Limit == 0 {
			return 0
		}
		return have + f.Limit
	}
	err = m.objects.Configured.Put(uint32(d), middleboxSettings{
		Drop:      middleboxChance{PerMillion: f.Drop, Limit: limit(before.Dropped)},
		Duplicate: middleboxChance{PerMillion: f.Duplicate, Limit: limit(before.Duplicated)},
		Corrupt:   middleboxChance{PerMillion: f.Corrupt, Limit: limit(before.Corrupted)},
		Reorder:   middleboxChance{PerMillion: f.Reorder, Limit: limit(before.Reordered)},
		Seed:      f.Seed, Out: out, Longer: uint32(s.longer.ifindex), Usual: usual,
	})
	if err != nil {
		return fmt.Errorf("setting the faults: %w", err)
	}
	return nil
}

// setRate puts a token bucket in front of the way out, or takes it away.
func (m *Middlebox) setRate(s *side, rate uint64) error {
	const burst = 16 << 10
	q := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: s.out.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: burst,
		Limit: burst + uint32(float64(rate)*rateQueue.Seconds()),
	}
	var err error
	switch {
	case rate > 0:
		err = m.routes.QdiscReplace(q)
	case s.limited:
		err = m.routes.QdiscDel(q)
	}
	if err != nil {
		return fmt.Errorf("bounding the rate of %s: %w", s.out.Attrs().Name, err)
	}
	s.limited = rate > 0
	return nil
}

// Counts returns what happened in a direction since New.
func (m *Middlebox) Counts(d Direction) (Counts, error) {
	var c middleboxCounts
	if err := m.objects.Counted.Lookup(uint32(d), &c); err != nil {
		return Counts{}, fmt.Errorf("reading the counts: %w", err)
	}
	return Counts{
		Segments: c.Segments, Octets: c.Octets,
		Dropped: c.Dropped, Duplicated: c.Duplicated, Corrupted: c.Corrupted, Reordered: c.Reordered,
	}, nil
}

// Plus is both together.
func (c Counts) Plus(o Counts) Counts {
	return Counts{
		Segments: c.Segments + o.Segments, Octets: c.Octets + o.Octets,
		Dropped: c.Dropped + o.Dropped, Duplicated: c.Duplicated + o.Duplicated,
		Corrupted: c.Corrupted + o.Corrupted, Reordered: c.Reordered + o.Reordered,
	}
}

// Minus is what happened since `before`.
func (c Counts) Minus(before Counts) Counts {
	return Counts{
		Segments: c.Segments - before.Segments, Octets: c.Octets - before.Octets,
		Dropped: c.Dropped - before.Dropped, Duplicated: c.Duplicated - before.Duplicated,
		Corrupted: c.Corrupted - before.Corrupted, Reordered: c.Reordered - before.Reordered,
	}
}

// Close takes the middlebox away: the wire is cut.
func (m *Middlebox) Close() error {
	var errs []error
	for _, l := range m.links {
		errs = append(errs, l.Close())
	}
	m.links = nil
	for i := range m.side {
		for _, l := range []*lane{m.side[i].longer, m.side[i].late} {
			if l != nil {
				errs = append(errs, l.close())
			}
		}
	}
	m.side = [directions]side{}
	if m.routes != nil {
		m.routes.Close()
	}
	return errors.Join(append(errs, m.objects.Close())...)
}
