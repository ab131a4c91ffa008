// SPDX-License-Identifier: Apache-2.0

// Package abi is the Go view of what eTran's eBPF programs, daemon and library
// share. The headers in include/etran are the definition; everything here is
// made from them by way of BTF, and nothing is typed a second time:
//
//   - structures and enumerations: bpf2go, from abi.bpf.c (names.go gives them
//     Go names),
//   - macros: enumerators in abi.bpf.c,
//   - reason texts: the .rodata of the same object.
//
// The layout test compares C, BTF and Go field by field.
package abi
