// SPDX-License-Identifier: Apache-2.0

// Package scm handles descriptors that come beside a message (SCM_RIGHTS).
package scm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Descriptors returns those in the ancillary data of a message. Those found
// before an error are the caller's, too.
func Descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("ancillary data: %w", err)
	}
	var all []int
	for i := range messages {
		if messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return all, fmt.Errorf("descriptors: %w", err)
		}
		all = append(all, fds...)
	}
	return all, nil
}

// Close closes descriptors that nobody wants.
func Close(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
