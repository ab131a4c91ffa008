// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// header64 is a 64-bit ELF file without segments or sections.
func header64(machine elf.Machine) []byte {
	var b bytes.Buffer
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Ehsize: 64, Phentsize: 56, Shentsize: 64,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	h.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	h.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	// Writing to a bytes.Buffer does not fail.
	_ = binary.Write(&b, binary.LittleEndian, h)
	return b.Bytes()
}

// header32 is the same for a 32-bit machine.
func header32() []byte {
	var b bytes.Buffer
	h := elf.Header32{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_386), Version: uint32(elf.EV_CURRENT),
		Ehsize: 52, Phentsize: 32, Shentsize: 40,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS32)
	h.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	h.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	_ = binary.Write(&b, binary.LittleEndian, h)
	return b.Bytes()
}

func TestWhyNotPreloadable(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	static := file("static", header64(machines[runtime.GOARCH]))

	for _, tc := range []struct {
		name, path string
		args       []string
		want       string // part of the reason; "" for none
	}{
		{"dynamic", "/bin/sh", nil, ""},
		{"go", self, nil, "Go program"},
		{"static", static, nil, "statically linked"},
		{"32 bit", file("i386", header32()), nil, "32-bit"},
		{"other machine", file("sparc", header64(elf.EM_SPARCV9)), nil, "another machine"},
		{"text", file("text", []byte("hello")), nil, "no ELF"},
		{"empty", file("empty", nil), nil, "no ELF"},
		{"script", file("script", []byte("#!/bin/sh -e\necho hello\n")), nil, ""},
		{"script of a static interpreter", file("script2", []byte("#! "+static+"\n")), nil, "statically linked"},
		{"script without line end", file("script3", []byte("#!"+self)), nil, "Go program"},
		{"env", "/usr/bin/env", []string{"-u", "A=b", static}, "statically linked"},
		{"script of env", file("script4", []byte("#!/usr/bin/env "+self+"\n")), nil, "Go program"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := whyNotPreloadable(tc.path, tc.args)
			if err != nil {
				t.Fatal(err)
			}
			if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q in it", got, tc.want)
			}
		})
	}
}

func TestWhyNotPreloadableErrors(t *testing.T) {
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop")
	if err := os.WriteFile(loop, []byte("#!"+loop+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{loop, filepath.Join(dir, "missing")} {
		if reason, err := whyNotPreloadable(path, nil); err == nil {
			t.Errorf("%s: got %q and no error", path, reason)
		}
	}
}

func TestWhyNotPrivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	path := filepath.Join(t.TempDir(), "setuid")
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if reason, err := whyNotPrivileged(path); err != nil || reason != "" {
		t.Errorf("ordinary: %q, %v", reason, err)
	}
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]string{os.ModeSetuid: "setuid", os.ModeSetgid: "setgid"} {
		if err := os.Chmod(path, 0o755|mode); err != nil {
			t.Fatal(err)
		}
		if reason, err := whyNotPrivileged(path); err != nil || !strings.Contains(reason, want) {
			t.Errorf("%v: %q, %v", mode, reason, err)
		}
	}
}
