// SPDX-License-Identifier: Apache-2.0

package app

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxQueued bounds the requests that wait for a busy slot. A library has one
// under way, and perhaps a cancellation behind it.
const maxQueued = 8

// mailbox keeps the requests about one slot in order without making one slot
// wait for another.
type mailbox struct {
	mu    sync.Mutex
	busy  bool
	queue []func()
}

// do runs the job: here, unless the slot is busy or the job may be slow. False:
// too many wait already, and the job is not done.
func (b *mailbox) do(job func(), slow bool) bool {
	b.mu.Lock()
	if b.busy {
		defer b.mu.Unlock()
		if len(b.queue) >= maxQueued {
			return false
		}
		b.queue = append(b.queue, job)
		return true
	}
	b.busy = true
	b.mu.Unlock()
	if slow {
		go b.work(job)
	} else {
		b.work(job)
	}
	return true
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

// rate bounds the messages of one program, and the time that they cost: a
// token bucket of one second's worth, whose owner waits when it is empty.
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

// timeShare is the part of its time that the daemon has for one program: one
// in so many. It runs before all others, so nobody may make it run for long.
const timeShare = 4

// charge runs a job and charges the processor time that it takes.
func (r *rate) charge(job func()) {
	start, work := time.Now(), workDone()
	job()
	// The goroutine may have changed threads: then the difference says nothing.
	r.spent(min(workDone()-work, time.Since(start)))
}

func (r *rate) spent(d time.Duration) {
	r.used += timeShare * max(0, d.Seconds()) * float64(r.perSecond)
}

// workDone is the processor time of this thread.
func workDone() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
