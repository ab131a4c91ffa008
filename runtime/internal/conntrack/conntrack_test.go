// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
)

func TestRequestIsWellFormed(t *testing.T) {
	r := request(netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:4000"))
	if n := binary.NativeEndian.Uint32(r); int(n) != len(r) || n%4 != 0 {
		t.Errorf("length field %d, message %d", n, len(r))
	}
	var kinds []uint16
	for rest := r[20:]; len(rest) > 0; {
		length := int(binary.NativeEndian.Uint16(rest))
		kinds = append(kinds, binary.NativeEndian.Uint16(rest[2:])&0x3fff)
		rest = rest[(length+3)&^3:]
	}
	if len(kinds) < 2 || kinds[0] != tupleOrig || kinds[1] != protoinfo {
		t.Errorf("attributes %v", kinds)
	}
}

func TestUntrackedConnection(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("ctnetlink needs CAP_NET_ADMIN")
	}
	err := Refresh(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"))
	if !errors.Is(err, ErrNotTracked) {
		t.Errorf("error %v", err)
	}
}
