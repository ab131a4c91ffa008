// SPDX-License-Identifier: Apache-2.0

package seq

import (
	"testing"
	"testing/quick"
)

func TestOrderAcrossTheWrap(t *testing.T) {
	for _, c := range []struct {
		s, t   Num
		before bool
	}{
		{0, 1, true},
		{1, 0, false},
		{5, 5, false},
		{0xffffffff, 0, true},
		{0, 0xffffffff, false},
		{0xfffffff0, 0x10, true},
	} {
		if got := c.s.Before(c.t); got != c.before {
			t.Errorf("%#x.Before(%#x) = %v", uint32(c.s), uint32(c.t), got)
		}
	}
}

func TestBetween(t *testing.T) {
	for _, c := range []struct {
		s, low, high Num
		want         bool
	}{
		{5, 5, 5, true},
		{4, 5, 9, false},
		{10, 5, 9, false},
		{0, 0xfffffffe, 3, true},
		{4, 0xfffffffe, 3, false},
	} {
		if got := c.s.Between(c.low, c.high); got != c.want {
			t.Errorf("%d.Between(%d, %d) = %v", c.s, c.low, c.high, got)
		}
	}
}

func TestAddThenMinus(t *testing.T) {
	same := func(s uint32, n int16) bool {
		return Num(s).Add(int(n)).Minus(Num(s)) == int(n)
	}
	if err := quick.Check(same, nil); err != nil {
		t.Error(err)
	}
}
