// SPDX-License-Identifier: Apache-2.0

package abi

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-stem abi abi abi.bpf.c -- -I include -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu -O2 -Wall -Wextra -Werror
//go:generate go run ./internal/names
