// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
)

var tuple = Tuple{
	Local:  netip.MustParseAddrPort("10.77.0.1:6379"),
	Remote: netip.MustParseAddrPort("10.77.0.2:40000"),
}

// build makes a segment from the tuple's peer with empty checksums.
func build(payload []byte) []byte {
	f := make([]byte, etherLen+ipv4Len+tcpLen, etherLen+ipv4Len+tcpLen+len(payload))
	binary.BigEndian.PutUint16(f[12:], etherIPv4)
	ip := f[etherLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, protocolTCP
	binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Len+tcpLen+len(payload)))
	src, dst := tuple.Remote.Addr().As4(), tuple.Local.Addr().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	tcp := ip[ipv4Len:]
	binary.BigEndian.PutUint16(tcp[0:], tuple.Remote.Port())
	binary.BigEndian.PutUint16(tcp[2:], tuple.Local.Port())
	binary.BigEndian.PutUint32(tcp[4:], 1000)
	binary.BigEndian.PutUint32(tcp[8:], 2000)
	tcp[12], tcp[13] = 5<<4, 0x10
	return append(f, payload...)
}

func TestParse(t *testing.T) {
	s, err := Parse(append(build([]byte("abc")), 0, 0, 0), tuple)
	if err != nil {
		t.Fatal(err)
	}
	if s.Seq != 1000 || s.Ack != 2000 || !s.HasAck {
		t.Errorf("segment %+v", s)
	}
	if want := etherLen + ipv4Len + tcpLen + 3; len(s.Frame) != want {
		t.Errorf("length %d with the padding cut off, want %d", len(s.Frame), want)
	}
}

func TestParseRefusesWhatIsNotOurs(t *testing.T) {
	for name, change := range map[string]func(f []byte) []byte{
		"short":         func(f []byte) []byte { return f[:50] },
		"long":          func(f []byte) []byte { return append(f, make([]byte, Largest)...) },
		"IPv6":          func(f []byte) []byte { f[12], f[13] = 0x86, 0xdd; return f },
		"version":       func(f []byte) []byte { f[14] = 0x65; return f },
		"header length": func(f []byte) []byte { f[14] = 0x44; return f },
		"IPv4 options":  func(f []byte) []byte { f[14], f[17] = 0x46, 44; return append(f, make([]byte, 4)...) },
		"total beyond":  func(f []byte) []byte { f[17] = 200; return f },
		"total small":   func(f []byte) []byte { f[17] = 30; return f },
		"fragment":      func(f []byte) []byte { f[20] = 0x20; return f },
		"UDP":           func(f []byte) []byte { f[23] = 17; return f },
		"source":        func(f []byte) []byte { f[29]++; return f },
		"destination":   func(f []byte) []byte { f[33]++; return f },
		"port":          func(f []byte) []byte { f[35]++; return f },
		"TCP offset":    func(f []byte) []byte { f[46] = 0xf0; return f },
	} {
		if _, err := Parse(change(build(nil)), tuple); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestCompleteChecksum(t *testing.T) {
	for _, payload := range [][]byte{nil, []byte("x"), []byte("four"), bytes.Repeat([]byte{0xff}, 1449)} {
		s, err := Parse(build(payload), tuple)
		if err != nil {
			t.Fatal(err)
		}
		ip := s.Frame[etherLen:]
		tcp := ip[ipv4Len:]
		pseudo := sum(protocolTCP+uint64(len(tcp)), ip[12:20])
		// As a veth peer leaves it, then whole.
		binary.BigEndian.PutUint16(tcp[16:], fold(pseudo))
		for range 2 {
			if !s.CompleteChecksum() {
				t.Errorf("%d octets: refused", len(payload))
			}
			if got := fold(sum(pseudo, tcp)); got != 0xffff {
				t.Errorf("%d octets: TCP sums to %#x", len(payload), got)
			}
		}
		tcp[len(tcp)-1] ^= 0x10
		if s.CompleteChecksum() {
			t.Errorf("%d octets: a changed one was not noticed", len(payload))
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(build([]byte("seed")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Parse(raw, tuple)
		if err != nil {
			return
		}
		s.CompleteChecksum()
		if again, err := Parse(s.Frame, tuple); err != nil || again.Seq != s.Seq {
			t.Errorf("completed frame does not parse: %v", err)
		}
	})
}

func TestBuildMakesWhatParseTakes(t *testing.T) {
	payload := bytes.Repeat([]byte("odd"), 333)
	h := Header{Tuple: tuple, Source: [6]byte{1, 2, 3, 4, 5, 6}, Destination: [6]byte{7, 8, 9, 10, 11, 12},
		Seq: 0xfffffffe, Ack: 7, Window: 500}
	s, err := Parse(Build(h, payload).Frame, tuple)
	if err != nil {
		t.Fatal(err)
	}
	if !s.CompleteChecksum() {
		t.Error("its checksum was refused")
	}
	if s.Seq != h.Seq || s.Ack != h.Ack || !s.HasAck || !bytes.HasSuffix(s.Frame, payload) ||
		!bytes.HasPrefix(s.Frame, []byte{7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6, 8, 0}) {
		t.Errorf("segment %+v", s)
	}
	ip := s.Frame[etherLen:]
	if fold(sum(0, ip[:ipv4Len])) != 0xffff || fold(sum(sum(protocolTCP+uint64(len(ip)-ipv4Len), ip[12:20]), ip[ipv4Len:])) != 0xffff {
		t.Error("checksums are wrong")
	}
}
