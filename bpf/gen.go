// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

// Package bpf holds eTran's eBPF programs and loads them.
//
// The programs are compiled from etran.bpf.c; the structures they share with
// the daemon and the library are those of package abi. What the daemon does
// with them is a method of [Objects].
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -no-global-types etran etran.bpf.c -- -mcpu=v3 -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -I../c-abi/include -idirafter /usr/include/x86_64-linux-gnu
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -no-global-types socket socket.bpf.c -- -mcpu=v3 -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -I../c-abi/include -idirafter /usr/include/x86_64-linux-gnu
