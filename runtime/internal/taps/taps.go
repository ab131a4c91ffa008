// SPDX-License-Identifier: Apache-2.0

// Package taps makes the devices of the applications: the taps that they send by,
// and the veth pairs that shared rings lie behind. All of them live in one private network namespace that nobody else can enter: a frame
// that escapes the egress program meets no host stack that could forward it,
// no user can open a tap by name, and an ifindex means one tap only.
package taps

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Space is the private namespace. Its work is done by one thread that stays in
// it for ever: several kernel interfaces act on the caller's namespace.
type Space struct {
	jobs  chan func()
	links *netlink.Handle
	ns    netns.NsHandle
}

// NewSpace makes the namespace.
func NewSpace() (*Space, error) { return startSpace(netns.None()) }

// AdoptSpace takes over the namespace of an earlier daemon. The descriptor
// becomes the space's.
func AdoptSpace(fd int) (*Space, error) { return startSpace(netns.NsHandle(fd)) }

func startSpace(ns netns.NsHandle) (*Space, error) {
	s := &Space{jobs: make(chan func()), ns: ns}
	ready := make(chan error)
	go s.live(ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Space) live(ready chan<- error) {
	// Never unlocked: the thread ends with the goroutine, so no other
	// goroutine can find itself in this namespace.
	runtime.LockOSThread()
	if err := s.enter(); err != nil {
		ready <- err
		return
	}
	close(ready)
	for job := range s.jobs {
		job()
	}
	s.links.Close()
	s.ns.Close()
}

// Fd is a descriptor of the namespace, which keeps it and its taps in being.
func (s *Space) Fd() int { return int(s.ns) }

func (s *Space) enter() error {
	if s.ns.IsOpen() {
		if err := unix.Setns(int(s.ns), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the taps' network namespace: %w", err)
		}
		return s.openLinks()
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("create the taps' network namespace: %w", err)
	}
	// Taps must not speak of their own accord.
	const noIPv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
	if err := os.WriteFile(noIPv6, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("disable IPv6 in the taps' namespace: %w", err)
	}
	var err error
	if s.ns, err = netns.Get(); err != nil {
		return fmt.Errorf("open the taps' network namespace: %w", err)
	}
	return s.openLinks()
}

func (s *Space) openLinks() error {
	var err error
	if s.links, err = netlink.NewHandleAt(s.ns, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink in the taps' namespace: %w", err)
	}
	return nil
}

// do runs f on the namespace's thread.
func (s *Space) do(f func() error) error {
	result := make(chan error)
	s.jobs <- func() { result <- f() }
	return <-result
}

// Close ends the thread. Taps live on with whoever holds their descriptors.
func (s *Space) Close() { close(s.jobs) }

// Tap is a device of the private namespace. It exists as long as somebody
// holds its descriptor, normally the application alone.
type Tap struct {
	// Fd is to be sent to the application and closed.
	Fd      int
	Ifindex int
	Name    string
}

// Create makes a tap, has attach put the egress program on it, and brings it
// up. attach runs in the private namespace.
func (s *Space) Create(name string, attach func(ifindex int) error) (*Tap, error) {
	t := &Tap{Name: name, Fd: -1}
	err := s.do(func() error { return s.create(t, attach) })
	if err != nil {
		if t.Fd >= 0 {
			unix.Close(t.Fd)
		}
		return nil, fmt.Errorf("create tap %s: %w", name, err)
	}
	return t, nil
}

func (s *Space) create(t *Tap, attach func(ifindex int) error) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	t.Fd = fd
	req, err := unix.NewIfreq(t.Name)
	if err != nil {
		return fmt.Errorf("name: %w", err)
	}
	// One queue, no packet information, no virtio header: the header would
	// let the application speak past the egress program.
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, 0); err != nil {
		return fmt.Errorf("TUNSETOWNER: %w", err)
	}
	link, err := s.links.LinkByName(t.Name)
	if err != nil {
		return fmt.Errorf("find the device: %w", err)
	}
	t.Ifindex = link.Attrs().Index
	if err := attach(t.Ifindex); err != nil {
		return fmt.Errorf("attach egress: %w", err)
	}
	if err := s.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// Pair is a veth pair of the private namespace, with one queue: what is sent to
// the near end arrives at the far one.
type Pair struct {
	Near, Far int // ifindex
}

// CreatePair makes a pair and calls use in the namespace when both ends are up;
// an error of use undoes it. The pair exists until it is deleted by its near end,
// or as long as somebody holds the namespace.
func (s *Space) CreatePair(name string, mtu int, use func(name string, p Pair) error) (Pair, error) {
	var p Pair
	err := s.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.NumRxQueues, attrs.NumTxQueues = name, mtu, 1, 1
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: name + "f", PeerMTU: uint32(mtu), PeerNumRxQueues: 1, PeerNumTxQueues: 1}
		if err := s.links.LinkAdd(veth); err != nil {
			return err
		}
		err := s.openPair(veth, &p)
		if err == nil {
			err = use(name, p)
		}
		if err != nil {
			return errors.Join(err, s.links.LinkDel(veth))
		}
		return nil
	})
	if err != nil {
		return p, fmt.Errorf("create veth pair %s: %w", name, err)
	}
	return p, nil
}

func (s *Space) openPair(veth *netlink.Veth, p *Pair) error {
	for name, ifindex := range map[string]*int{veth.Name: &p.Near, veth.PeerName: &p.Far} {
		link, err := s.links.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := s.links.LinkSetUp(link); err != nil {
			return fmt.Errorf("set up %s: %w", name, err)
		}
		*ifindex = link.Attrs().Index
	}
	return nil
}

// Delete removes the device even if somebody made it persistent or still
// holds its descriptor.
func (s *Space) Delete(ifindex int) error {
	return s.do(func() error {
		link, err := s.links.LinkByIndex(ifindex)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find private device %d: %w", ifindex, err)
		}
		if err := s.links.LinkDel(link); err != nil {
			return fmt.Errorf("delete private device %d: %w", ifindex, err)
		}
		return nil
	})
}
