// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import "unsafe"

// octets returns the memory of v. T must hold no pointer; the shared structures
// of package abi do not.
func octets[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
