// SPDX-License-Identifier: Apache-2.0

package app

import (
	"testing"
	"time"
)

func TestMailboxKeepsOrder(t *testing.T) {
	var b mailbox
	release, done := make(chan bool), make(chan int, 3)
	b.do(func() { <-release; done <- 1 }, true)
	b.do(func() { done <- 2 }, false) // would run here if the slot were idle
	b.do(func() { done <- 3 }, true)
	close(release)
	for want := 1; want <= 3; want++ {
		if got := <-done; got != want {
			t.Errorf("job %d ran as number %d", got, want)
		}
	}
}

func TestMailboxRunsFastJobsHere(t *testing.T) {
	var b mailbox
	ran := false
	b.do(func() { ran = true }, false)
	if !ran {
		t.Error("job was put off")
	}
}

func TestMailboxIsBounded(t *testing.T) {
	var b mailbox
	release := make(chan bool)
	b.do(func() { <-release }, true)
	for n := range maxQueued {
		if !b.do(func() {}, false) {
			t.Errorf("job %d refused", n)
		}
	}
	if b.do(func() { t.Error("refused job ran") }, false) {
		t.Error("job beyond the bound accepted")
	}
	close(release)
}

func TestRateChargesTime(t *testing.T) {
	r := rate{perSecond: 1000, last: time.Now()}
	r.spent(275 * time.Millisecond)
	start := time.Now()
	r.wait()
	if passed := time.Since(start); passed < 80*time.Millisecond || passed > time.Second {
		t.Errorf("after 275 ms of work the next message waited %v", passed)
	}
}

func TestRateLetsBurstsThrough(t *testing.T) {
	r := rate{perSecond: 1000, last: time.Now()}
	start := time.Now()
	for range 1000 {
		r.wait()
	}
	if passed := time.Since(start); passed > 500*time.Millisecond {
		t.Errorf("a second's worth took %v", passed)
	}
	start = time.Now()
	for range 100 {
		r.wait()
	}
	if passed := time.Since(start); passed < 50*time.Millisecond {
		t.Errorf("100 more took %v only", passed)
	}
}
