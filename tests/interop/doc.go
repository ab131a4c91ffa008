// SPDX-License-Identifier: Apache-2.0

// Package interop runs well-known programs, as distributions package them, with
// one or both ends under eTran. What they transfer is compared octet by octet,
// and the daemons' counters prove which path it took.
package interop
