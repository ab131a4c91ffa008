// SPDX-License-Identifier: Apache-2.0

// Package counters holds what the daemon counts since its start.
package counters

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/adminapi"
)

// ByReason counts events by why they happened.
type ByReason [abi.PathReasonMax]atomic.Uint64

// Add counts one.
func (b *ByReason) Add(r abi.PathReason) {
	if int(r) >= len(b) {
		r = abi.PathReasonProtocol // programs name reasons too
	}
	b[r].Add(1)
}

// Map returns the reasons that occurred, by their names.
func (b *ByReason) Map() map[string]uint64 {
	m := map[string]uint64{}
	for r := range b {
		if n := b[r].Load(); n != 0 {
			m[abi.PathReason(r).String()] = n
		}
	}
	return m
}

// Traffic is what a connection moved.
type Traffic struct {
	FastSegsIn, FastSegsOut       uint64
	FastBytesIn, FastBytesOut     uint64
	KernelBytesIn, KernelBytesOut uint64
	Retransmissions               uint64
}

// Add sums up.
func (t *Traffic) Add(o Traffic) {
	t.FastSegsIn += o.FastSegsIn
	t.FastSegsOut += o.FastSegsOut
	t.FastBytesIn += o.FastBytesIn
	t.FastBytesOut += o.FastBytesOut
	t.KernelBytesIn += o.KernelBytesIn
	t.KernelBytesOut += o.KernelBytesOut
	t.Retransmissions += o.Retransmissions
}

// Fast returns the counters of a connection record.
func Fast(c *abi.Conn) Traffic {
	return Traffic{
		FastSegsIn: c.SegsIn, FastSegsOut: c.SegsOut,
		FastBytesIn: c.BytesIn, FastBytesOut: c.BytesOut,
		Retransmissions: c.Retrans,
	}
}

// Counters are the daemon's counters.
type Counters struct {
	Promotions                  atomic.Uint64
	Aborted, Refused, Demotions ByReason
	// Seized: given back to the kernel without the library's help. Stuck: what
	// the program's rings or arena said then made no sense, or never settled.
	// ClosedBehind: closed or shut down by ways that the library does not see.
	// Destroyed: the sleeping socket was ended, as `ss -K` does.
	Seized, Stuck, ClosedBehind, Destroyed atomic.Uint64

	PromotePause, DemotePause Pauses
	Adoption                  Adoption

	mu    sync.Mutex
	ended Traffic
}

// Adoption is what was taken over from the last daemon.
type Adoption struct {
	mu    sync.Mutex
	count adminapi.Adoption
}

// Update changes the counts.
func (a *Adoption) Update(f func(*adminapi.Adoption)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count.Recovered == nil {
		a.count.Recovered, a.count.Lost = map[string]uint64{}, map[string]uint64{}
	}
	f(&a.count)
}

// Count returns a copy.
func (a *Adoption) Count() (c adminapi.Adoption) {
	a.Update(func(count *adminapi.Adoption) {
		c = *count
		c.Recovered, c.Lost = maps.Clone(count.Recovered), maps.Clone(count.Lost)
	})
	return c
}

// End adds the traffic of something that ended.
func (c *Counters) End(t Traffic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended.Add(t)
}

// Ended returns the traffic of all that ended.
func (c *Counters) Ended() Traffic {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// Pauses remembers the last pauses and the longest of all.
type Pauses struct {
	mu      sync.Mutex
	count   uint64
	longest time.Duration
	last    []time.Duration
}

const rememberedPauses = 4096

// Add records a pause.
func (p *Pauses) Add(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.last) < rememberedPauses {
		p.last = append(p.last, d)
	} else {
		p.last[p.count%rememberedPauses] = d
	}
	p.count++
	p.longest = max(p.longest, d)
}

// Quantiles summarises: quantiles of the last pauses, maximum of all.
func (p *Pauses) Quantiles() adminapi.Quantiles {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count == 0 {
		return adminapi.Quantiles{}
	}
	sorted := slices.Sorted(slices.Values(p.last))
	at := func(percent int) float64 { return us(sorted[(len(sorted)-1)*percent/100]) }
	return adminapi.Quantiles{Count: p.count, P50Us: at(50), P99Us: at(99), MaxUs: us(p.longest)}
}

func us(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
