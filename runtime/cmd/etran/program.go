// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxInterpreters is how many scripts may be each other's interpreter, as in
// the kernel's exec.
const maxInterpreters = 5

// whyNotPreloadable says why a library can't be preloaded into a program, or
// "" if it can. For a script that depends on its interpreter. args are the
// program's arguments; they matter for env(1).
func whyNotPreloadable(path string, args []string) (string, error) {
	for range maxInterpreters {
		next, nextArgs, err := interpreter(path)
		if err != nil {
			return "", err
		}
		if next == "" && filepath.Base(path) == "env" {
			// env is dynamic, but runs something else.
			next, nextArgs = envCommand(args), nil
		}
		if next == "" {
			return whyNotBinary(path)
		}
		path, args = next, append(nextArgs, args...)
	}
	return "", fmt.Errorf("%s: too many interpreters of interpreters", path)
}

// interpreter returns the interpreter of a script with its argument, or "" for
// a program that is none.
func interpreter(path string) (string, []string, error) {
	f, err := os.Open(path)
	if err != nil {
		// A program may be executable and not readable: no reason to
		// refuse it.
		if errors.Is(err, os.ErrPermission) {
			return "", nil, nil
		}
		return "", nil, fmt.Errorf("looking at the program: %w", err)
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 256)).ReadBytes('\n')
	if err != nil && err != io.EOF {
		return "", nil, fmt.Errorf("reading the program %s: %w", path, err)
	}
	rest, isScript := bytes.CutPrefix(line, []byte("#!"))
	if !isScript {
		return "", nil, nil
	}
	// The kernel splits off one argument; only env -S splits it further.
	words := strings.Fields(string(rest))
	if len(words) == 0 {
		return "", nil, fmt.Errorf("%s: a script without an interpreter", path)
	}
	return words[0], words[1:], nil
}

// envCommand finds the program that env(1) would run with some arguments; ""
// if it can't tell.
func envCommand(args []string) string {
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") || strings.Contains(arg, "=") {
			continue
		}
		path, err := exec.LookPath(arg)
		if err != nil {
			return "" // env will complain
		}
		return path
	}
	return ""
}

// whyNotBinary says why a library can't be preloaded into a binary.
func whyNotBinary(path string) (string, error) {
	f, err := elf.Open(path)
	if errors.Is(err, os.ErrPermission) {
		return "", nil // can't tell
	}
	var format *elf.FormatError
	if errors.As(err, &format) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return path + " can't be accelerated: it is no ELF binary", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking at the program: %w", err)
	}
	defer f.Close()
	reason := whyNotELF(f)
	if reason == "" {
		reason, err = whyNotPrivileged(path)
		if err != nil {
			return "", err
		}
	}
	if reason == "" {
		return "", nil
	}
	return path + " can't be accelerated: " + reason, nil
}

// machines are the ELF machines of the architectures that we may run on.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// whyNotELF looks at what the linker and the compiler left in a binary.
func whyNotELF(f *elf.File) string {
	if f.Class != elf.ELFCLASS64 {
		return "it is a 32-bit program"
	}
	if f.Machine != machines[runtime.GOARCH] {
		return fmt.Sprintf("it is for another machine (%v)", f.Machine)
	}
	// Before the test for static linking: a Go program with cgo is
	// dynamic, but its network code doesn't go through libc either.
	if f.Section(".go.buildinfo") != nil {
		return "it is a Go program, which makes its system calls without libc"
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return ""
		}
	}
	return "it is statically linked"
}

// whyNotPrivileged tells programs in which the dynamic linker ignores
// LD_PRELOAD because they have rights that their caller lacks.
func whyNotPrivileged(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("looking at the program: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	const ignored = ", so the dynamic linker ignores LD_PRELOAD"
	if info.Mode()&os.ModeSetuid != 0 && int(owner.Uid) != os.Getuid() {
		return "it is a setuid program" + ignored, nil
	}
	if info.Mode()&os.ModeSetgid != 0 && int(owner.Gid) != os.Getgid() {
		return "it is a setgid program" + ignored, nil
	}
	// Root has the capabilities already.
	size, err := unix.Getxattr(path, "security.capability", nil)
	if err == nil && size > 0 && os.Getuid() != 0 {
		return "it has file capabilities" + ignored, nil
	}
	return "", nil
}
