// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// joinHosts lays the two wires and waits until both hosts know their
// neighbours.
func (tb *Testbed) joinHosts(ctx context.Context) error {
	for _, h := range tb.hosts() {
		if err := h.Do(prepareStack); err != nil {
			return fmt.Errorf("preparing host %s: %w", h.Name, err)
		}
	}
	wires := []wire{{"A", WireInterface, "B", WireInterface}, {"A", PlainInterface, "B", PlainInterface}}
	if tb.opts.Middlebox {
		wires[0] = wire{"A", WireInterface, middleName, middleToA}
		wires = append(wires, wire{"B", WireInterface, middleName, middleToB})
	}
	for _, w := range wires {
		if err := tb.layWire(w); err != nil {
			return err
		}
	}
	if tb.opts.Middlebox {
		if err := tb.makeMiddlebox(); err != nil {
			return err
		}
	}
	for _, h := range tb.hosts() {
		if err := h.Do(h.configureInterfaces); err != nil {
			return fmt.Errorf("configuring host %s: %w", h.Name, err)
		}
	}
	for _, h := range tb.hosts() {
		if err := h.resolveNeighbours(ctx); err != nil {
			return fmt.Errorf("resolving the neighbours of host %s: %w", h.Name, err)
		}
	}
	return nil
}

// prepareStack brings up the loopback and turns IPv6 off, so that no router
// solicitation or duplicate address detection disturbs a test. It runs inside
// the host's namespace.
func prepareStack() error {
	const knob = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
	if err := os.WriteFile(knob, []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("turning IPv6 off: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing up the loopback: %w", err)
	}
	return nil
}

// wire is a veth pair: where its ends are and what they are called.
type wire struct{ host, name, peerHost, peerName string }

// layWire makes a veth pair.
func (tb *Testbed) layWire(w wire) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = w.name
	attrs.MTU = tb.opts.MTU
	attrs.NumRxQueues = tb.opts.Queues
	attrs.NumTxQueues = tb.opts.Queues

	h, err := tb.Host(w.host)
	if err != nil {
		return err
	}
	peerNS, err := os.Open(tb.paths.netns(w.peerHost))
	if err != nil {
		return fmt.Errorf("opening the namespace of %s: %w", w.peerHost, err)
	}
	defer peerNS.Close()
	veth := netlink.NewVeth(attrs)
	veth.PeerName = w.peerName
	veth.PeerNamespace = netlink.NsFd(int(peerNS.Fd()))
	veth.PeerMTU = uint32(tb.opts.MTU)
	veth.PeerNumRxQueues = uint32(tb.opts.Queues)
	veth.PeerNumTxQueues = uint32(tb.opts.Queues)
	if err := h.Do(func() error { return netlink.LinkAdd(veth) }); err != nil {
		return fmt.Errorf("making the veth pair %s (MTU %d, %d queues): %w",
			w.name, tb.opts.MTU, tb.opts.Queues, err)
	}
	return nil
}

// configureInterfaces gives the host's ends of the wires their addresses and
// brings them up. It runs inside the host's namespace.
func (h *Host) configureInterfaces() error {
	for name, address := range map[string]string{WireInterface: h.Wire, PlainInterface: h.Plain} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding interface %s: %w", name, err)
		}
		cidr := address + "/24"
		parsed, err := netlink.ParseAddr(cidr)
		if err != nil {
			return fmt.Errorf("address %s: %w", cidr, err)
		}
		if err := netlink.AddrAdd(link, parsed); err != nil {
			return fmt.Errorf("giving %s the address %s: %w", name, cidr, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("bringing up %s: %w", name, err)
		}
	}
	// A veth accepts redirected frames only if its other end polls, which
	// it does with an XDP program or with GRO. Without GRO a host that has
	// no daemon could not be the peer of one that has.
	if err := setOffload(WireInterface, ethtoolSetGRO, 1); err != nil {
		return err
	}
	if !h.tb.opts.Middlebox {
		return nil
	}
	// Only a whole checksum notices what the middlebox changes.
	return setOffload(WireInterface, ethtoolSetTxChecksum, 0)
}

// neighbourTimeout is far above what a resolution takes on a veth.
const neighbourTimeout = 5 * time.Second

// resolveNeighbours makes the host ask for the other's MAC addresses and
// waits for the answers, so that the first connection of a test does not.
func (h *Host) resolveNeighbours(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, neighbourTimeout)
	defer cancel()
	for _, peer := range []string{h.peerWire(), h.peerPlain()} {
		// Any datagram does; port 9 is discard's.
		err := h.Do(func() error {
			conn, err := net.Dial("udp4", net.JoinHostPort(peer, "9"))
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("who are you?"))
			return err
		})
		if err != nil {
			return fmt.Errorf("sending a datagram to %s: %w", peer, err)
		}
		if err := h.awaitNeighbour(ctx, net.ParseIP(peer)); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) awaitNeighbour(ctx context.Context, peer net.IP) error {
	const resolved = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
	for {
		var known bool
		err := h.Do(func() error {
			neighbours, err := netlink.NeighList(0, netlink.FAMILY_V4)
			for _, n := range neighbours {
				known = known || n.IP.Equal(peer) && n.State&resolved != 0
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("listing neighbours: %w", err)
		}
		if known {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the MAC address of %s: %w", peer, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (h *Host) peerWire() string {
	if h.Wire == WireA {
		return WireB
	}
	return WireA
}

func (h *Host) peerPlain() string {
	if h.Plain == PlainA {
		return PlainB
	}
	return PlainA
}
