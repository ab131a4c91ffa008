// SPDX-License-Identifier: Apache-2.0

// Package seq has TCP sequence numbers: 32 bits that wrap (RFC 9293 3.4).
package seq

// Num is a sequence number. Never compare two with < or >.
type Num uint32

// Add returns the number n octets further.
func (s Num) Add(n int) Num { return s + Num(uint32(n)) }

// Minus returns how many octets s lies beyond t; negative if it lies before.
func (s Num) Minus(t Num) int { return int(int32(s - t)) }

// Before says whether s comes before t.
func (s Num) Before(t Num) bool { return int32(s-t) < 0 }

// After says whether s comes after t.
func (s Num) After(t Num) bool { return t.Before(s) }

// Between says whether s lies in [low, high], both included.
func (s Num) Between(low, high Num) bool { return s-low <= high-low }

// Max returns the later of both.
func Max(s, t Num) Num {
	if s.Before(t) {
		return t
	}
	return s
}
