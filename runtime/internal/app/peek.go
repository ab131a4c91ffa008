// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"time"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/xsk"
)

const (
	// What XDP has counted as delivered is in the ring when the kernel's
	// receive loop ends: microseconds, unless its processor is taken away.
	ringPatience = 500 * time.Millisecond
	ringNap      = 50 * time.Microsecond
)

// delivered is how many frames XDP has given to each ring of the application.
func (a *App) delivered(queues int) ([]uint32, error) {
	list := make([]uint32, queues)
	for queue := range list {
		var ring abi.PubRing
		if err := a.pub.Lookup(uint32(firstRing+queue), &ring); err != nil {
			return nil, fmt.Errorf("read the published words of ring %d: %w", firstRing+queue, err)
		}
		list[queue] = ring.Delivered
	}
	return list, nil
}

// AwaitRings waits until the rings show what has been delivered by now. Frames
// that the socket refused are taken back, so the number may also fall.
func (a *App) AwaitRings() bool {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	if a.rings == nil {
		return true
	}
	set := a.rings.set
	goal, err := a.delivered(len(set.Sockets))
	for deadline := time.Now().Add(ringPatience); err == nil; {
		var now []uint32
		if now, err = a.delivered(len(set.Sockets)); err != nil {
			break
		}
		shown := true
		for queue := range now {
			produced := set.Produced(queue)
			shown = shown && (int32(produced-goal[queue]) >= 0 || produced == now[queue])
		}
		if shown {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(ringNap)
	}
	a.m.log.Error("rings not looked at", "app", a.id, "error", err)
	return false
}

// PeekRings copies the frames of a slot that the library has not taken.
func (a *App) PeekRings(slot uint16, generation uint32) []xsk.Frame {
	a.claimMu.Lock()
	defer a.claimMu.Unlock()
	if a.rings == nil {
		return nil
	}
	var all []xsk.Frame
	for queue := range a.rings.set.Sockets {
		frames, err := a.rings.set.Peek(queue, slot, generation)
		if err != nil {
			a.m.counters.Stuck.Add(1)
			a.m.log.Warn("ring not looked at", "app", a.id, "queue", queue, "error", err)
		}
		all = append(all, frames...)
	}
	return all
}
