// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A buffer names the options of one of a socket's two buffers.
type buffer struct{ get, force int }

var (
	receiveBuffer = buffer{unix.SO_RCVBUF, unix.SO_RCVBUFFORCE}
	sendBuffer    = buffer{unix.SO_SNDBUF, unix.SO_SNDBUFFORCE}
)

// withBuffer calls f while the buffer has room for n octets, whatever the
// program's limits are, and puts limit and lock back.
func withBuffer(fd int, b buffer, n int, f func() error) error {
	if n == 0 {
		return f()
	}
	// The kernel doubles what is set and counts its own overhead against it.
	const overhead = 4
	old, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, b.get)
	if err != nil {
		return fmt.Errorf("read buffer limit: %w", err)
	}
	if n*overhead <= old {
		return f()
	}
	lock, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if err != nil {
		return fmt.Errorf("read SO_BUF_LOCK: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.force, n*overhead); err != nil {
		return fmt.Errorf("raise buffer limit: %w", err)
	}
	err = f()
	if back := unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.force, old/2); err == nil && back != nil {
		err = fmt.Errorf("restore buffer limit: %w", back)
	}
	if back := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, lock); err == nil && back != nil {
		err = fmt.Errorf("restore SO_BUF_LOCK: %w", back)
	}
	return err
}
