// SPDX-License-Identifier: Apache-2.0

// Package preload tests how programs behave under LD_PRELOAD=libetran.so when
// eTran does nothing for them: exactly as without it; and, with a testbed, that
// every libc name of the library is needed and works. It needs `make`.
package preload
