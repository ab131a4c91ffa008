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
func (a *App) delivered(sockets []xsk.Socket) ([]uint32, error) {
	list := make([]uint32, len(sockets))
	for i, s := range sockets {
		var ring abi.PubRing
		if err := a.pub.Lookup(s.Ring, &ring); err != nil {
			return nil, fmt.Errorf("read the published words of ring %d: %w", s.Ring, err)
		}
		list[i] = ring.Delivered
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
	goal, err := a.delivered(set.Sockets)
	for deadline := time.Now().Add(ringPatience); err == nil; {
		var now []uint32
		if now, err = a.delivered(set.Sockets); err != nil {
			break
		}
		shown := true
		for i := range now {
			produced := set.Produced(i)
			shown = shown && (int32(produced-goal[i]) >= 0 || produced == now[i])
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
	for i, s := range a.rings.set.Sockets {
		frames, err := a.rings.set.Peek(i, slot, generation)
		if err != nil {
			a.m.counters.Stuck.Add(1)
			a.m.log.Warn("ring not looked at", "app", a.id, "ring", s.Ring, "error", err)
		}
		all = append(all, frames...)
	}
	return all
}
