// SPDX-License-Identifier: Apache-2.0

// Package preload tests how programs behave under LD_PRELOAD=libetran.so when
// eTran does nothing for them: exactly as without it. It needs `make` and no
// privilege.
package preload
