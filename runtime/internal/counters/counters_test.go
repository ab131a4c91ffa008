// SPDX-License-Identifier: Apache-2.0

package counters

import (
	"testing"
	"time"

	abi "github.com/etran-go/etran/c-abi"
)

func TestByReason(t *testing.T) {
	var b ByReason
	b.Add(abi.PathReasonRto)
	b.Add(abi.PathReasonRto)
	b.Add(1 << 20) // a program's nonsense
	m := b.Map()
	if len(m) != 2 || m["rto"] != 2 || m["protocol"] != 1 {
		t.Errorf("%v", m)
	}
}

func TestPauses(t *testing.T) {
	var p Pauses
	if q := p.Quantiles(); q.Count != 0 {
		t.Errorf("empty: %+v", q)
	}
	for i := range 10000 {
		p.Add(time.Duration(i) * time.Microsecond)
	}
	p.Add(time.Second)
	q := p.Quantiles()
	if q.Count != 10001 || q.MaxUs != 1e6 || q.P50Us < 7000 || q.P50Us > 9000 {
		t.Errorf("%+v", q)
	}
}
