// SPDX-License-Identifier: Apache-2.0

package arena

import (
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

const (
	aconnSize = uint64(unsafe.Sizeof(abi.Aconn{}))
	stashSize = uint64(unsafe.Sizeof(abi.Stash{}))
)

func (a *Arena) replaceByZeros() error {
	addr := unsafe.Pointer(&a.mem[0])
	_, err := unix.MmapPtr(-1, 0, addr, uintptr(len(a.mem)), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	return err
}

func (a *Arena) header() *abi.Arena {
	return (*abi.Arena)(unsafe.Pointer(&a.mem[0]))
}

func (a *Arena) stash(i int) *abi.Stash {
	return (*abi.Stash)(unsafe.Pointer(&a.mem[a.layout.Stash+uint64(i)*stashSize]))
}

func (s Slot) aconn() *abi.Aconn {
	return (*abi.Aconn)(unsafe.Pointer(&s.a.mem[s.a.layout.Conns+uint64(s.index)*s.a.layout.ConnStride]))
}

func (s Slot) phaseWord() *uint32 { return &s.aconn().Phase }

// Totals copies the application's counters.
func (a *Arena) Totals() Totals {
	h := a.header()
	defer runtime.KeepAlive(a)
	return Totals{
		KernelBytesIn:  atomic.LoadUint64(&h.KernelBytesIn),
		KernelBytesOut: atomic.LoadUint64(&h.KernelBytesOut),
		KernelCalls:    atomic.LoadUint64(&h.KernelCalls),
		Sockets:        atomic.LoadUint64(&h.Sockets),
	}
}

// Drop marks a stash entry unused; the library may take it from then on.
func (a *Arena) Drop(i int) {
	// State shares a word with Slot, and Go has no 16-bit atomics: the
	// library does not touch an entry that is held.
	e := a.stash(i)
	word := (*uint32)(unsafe.Pointer(&e.Slot))
	storeRelease(word, uint32(e.Slot)|stashUnused<<16)
}

func storeRelease(word *uint32, value uint32) { atomic.StoreUint32(word, value) }

func swap(word *uint32, from, to uint32) bool { return atomic.CompareAndSwapUint32(word, from, to) }

func loadAcquire(word *uint32) uint32 { return atomic.LoadUint32(word) }

func compareAndSwap(word *uint32, old, value uint32) bool {
	return atomic.CompareAndSwapUint32(word, old, value)
}

// Not FUTEX_PRIVATE: the waiters are in another process.
const (
	futexWaitOp = 0
	futexWakeOp = 1
	everybody   = 1<<31 - 1
)

func futexWake(word *uint32) {
	// Waking cannot fail for an address that is mapped.
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWakeOp, everybody, 0, 0, 0)
}

// futexWait returns when woken, when the word is no longer `value`, or in
// time; the caller looks again in all cases.
func futexWait(word *uint32, value uint32, timeout time.Duration) {
	ts := unix.NsecToTimespec(timeout.Nanoseconds())
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWaitOp,
		uintptr(value), uintptr(unsafe.Pointer(&ts)), 0, 0)
}
