// SPDX-License-Identifier: Apache-2.0

package middlebox

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -type chance -type settings -type counts middlebox middlebox.bpf.c -- -mcpu=v3 -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -idirafter /usr/include/x86_64-linux-gnu
