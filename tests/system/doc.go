// SPDX-License-Identifier: Apache-2.0

// Package system tests the whole product: unmodified programs under
// libetran.so on the two hosts of a testbed, a daemon on each. Every test
// proves by the daemons' counters which path the bytes took.
package system
