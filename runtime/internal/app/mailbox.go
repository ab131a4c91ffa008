// SPDX-License-Identifier: Apache-2.0

package app

import (
	"sync"
	"time"
)

// mailbox keeps the requests about one slot in order without making one slot
// wait for another.
type mailbox struct {
	mu    sync.Mutex
	busy  bool
	queue []func()
}

// do runs the job: here, unless the slot is busy or the job may be slow.
func (b *mailbox) do(job func(), slow bool) {
	b.mu.Lock()
	if b.busy {
		b.queue = append(b.queue, job)
		b.mu.Unlock()
		return
	}
	b.busy = true
	b.mu.Unlock()
	if slow {
		go b.work(job)
	} else {
		b.work(job)
	}
}

func (b *mailbox) work(job func()) {
	for job != nil {
		job()
		job = b.next()
	}
}

func (b *mailbox) next() func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		b.busy = false
		return nil
	}
	job := b.queue[0]
	b.queue = b.queue[1:]
	return job
}

// rate bounds the messages of one program: a token bucket of one second's
// worth, whose owner waits when it is empty.
type rate struct {
	perSecond int
	used      float64
	last      time.Time
}

func (r *rate) wait() {
	now := time.Now()
	r.used = max(0, r.used-now.Sub(r.last).Seconds()*float64(r.perSecond)) + 1
	r.last = now
	if over := r.used - float64(r.perSecond); over > 0 {
		time.Sleep(time.Duration(over / float64(r.perSecond) * float64(time.Second)))
	}
}
