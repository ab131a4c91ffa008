// SPDX-License-Identifier: Apache-2.0

// Package die lets a test end the daemon between two steps of a switch. Only a
// build with the tag etrantest can do it; in the product At does nothing.
package die
