// SPDX-License-Identifier: Apache-2.0

// Package ipsec tells which connections the kernel's IPsec policies transform
// or forbid. The fast path knows nothing of them: its segments would leave in
// the clear.
package ipsec

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Covers says whether a policy applies to a connection, in either direction.
func Covers(local, remote netip.AddrPort) (bool, error) {
	policies, err := netlink.XfrmPolicyList(netlink.FAMILY_V4)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil // a kernel without IPsec
	}
	if err != nil {
		return false, fmt.Errorf("list IPsec policies: %w", err)
	}
	for i := range policies {
		if covers(&policies[i], local, remote) {
			return true, nil
		}
	}
	return false, nil
}

func covers(p *netlink.XfrmPolicy, local, remote netip.AddrPort) bool {
	if len(p.Tmpls) == 0 && p.Action != netlink.XFRM_POLICY_BLOCK {
		return false // lets it pass as it is
	}
	switch p.Dir {
	case netlink.XFRM_DIR_OUT:
		return selects(p, local, remote)
	case netlink.XFRM_DIR_IN:
		return selects(p, remote, local)
	default:
		return false // forwarded, or another socket's own
	}
}

func selects(p *netlink.XfrmPolicy, from, to netip.AddrPort) bool {
	return (p.Proto == 0 || p.Proto == unix.IPPROTO_TCP) &&
		inside(p.Src, from) && inside(p.Dst, to) &&
		(p.SrcPort == 0 || p.SrcPort == int(from.Port())) &&
		(p.DstPort == 0 || p.DstPort == int(to.Port()))
}

func inside(n *net.IPNet, a netip.AddrPort) bool {
	return n == nil || n.Contains(a.Addr().AsSlice())
}
