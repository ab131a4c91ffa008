// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"testing"
	"time"

	"github.com/etran-go/etran/tests/middlebox"
)

func TestMiddlebox(t *testing.T) {
	tb := ForTest(t, Options{Name: ownName, NoDaemon: true, Middlebox: true})
	if err := exchange(tb, WireB); err != nil {
		t.Errorf("through a good middlebox: %v", err)
	}
	const late = 50 * time.Millisecond
	for _, f := range []middlebox.Faults{
		{Drop: 1e6, Limit: 1},
		{Duplicate: 1e6},
		{Reorder: 5e5, ReorderDelay: time.Millisecond},
		{Delay: late},
		{Rate: 100_000},
		{},
	} {
		if err := tb.SetFaults(f); err != nil {
			t.Fatalf("%+v: %v", f, err)
		}
		before, err := tb.Middlebox().Counts(middlebox.AToB)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := exchange(tb, WireB); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
		took := time.Since(start)
		now, err := tb.Middlebox().Counts(middlebox.AToB)
		if err != nil {
			t.Fatal(err)
		}
		c := now.Minus(before)
		if c.Segments == 0 || (c.Dropped > 0) != (f.Drop > 0) || (c.Duplicated > 0) != (f.Duplicate > 0) {
			t.Errorf("%+v: counted %+v", f, c)
		}
		if f.Delay > 0 && took < 2*late {
			t.Errorf("%+v: took %v", f, took)
		}
	}
	if err := tb.Close(); err != nil {
		t.Error(err)
	}
	checkGone(t)
}
