// SPDX-License-Identifier: Apache-2.0

// Command relocs takes the relocations of Go's data out of the dynamic linker's
// list, for the library to do them itself when it starts Go (shim/start.c).
// They write to 30 pages, in every process that has the library, and few of
// those ever use Go.
//
// relocs LIBRARY MAP: MAP is the linker's map. The list becomes: relative
// relocations that stay, all others, and behind its new end what was taken out;
// the section et_deferred says where that is.
package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"strconv"
)

// goArchive is what Go's data comes from.
const goArchive = "libetrango.a"

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: relocs LIBRARY MAP")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintf(os.Stderr, "relocs: %v\n", err)
		os.Exit(1)
	}
}

// An area is a part of the library, by addresses.
type area struct{ start, end uint64 }

func run(library, mapFile string) error {
	goAreas, err := readMap(mapFile)
	if err != nil {
		return err
	}
	image, err := os.ReadFile(library)
	if err != nil {
		return err
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return fmt.Errorf("%s: %w", library, err)
	}
	if err := rewrite(image, f, goAreas); err != nil {
		return fmt.Errorf("%s: %w", library, err)
	}
	return os.WriteFile(library, image, 0o755)
}

// readMap finds where the linker has put Go's data.
func readMap(file string) ([]area, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	line := regexp.MustCompile(`\s(0x[0-9a-f]+)\s+(0x[0-9a-f]+)\s\S*` + regexp.QuoteMeta(goArchive) + `\(`)
	var areas []area
	for _, m := range line.FindAllSubmatch(text, -1) {
		start, err := strconv.ParseUint(string(m[1]), 0, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		size, err := strconv.ParseUint(string(m[2]), 0, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if start > 0 && size > 0 {
			areas = append(areas, area{start, start + size})
		}
	}
	if len(areas) == 0 {
		return nil, fmt.Errorf("%s: nothing is from %s", file, goArchive)
	}
	return areas, nil
}

// rewrite sorts the list and says its new length.
func rewrite(image []byte, f *elf.File, goAreas []area) error {
	rela, dynamic, deferred := f.Section(".rela.dyn"), f.Section(".dynamic"), f.Section("et_deferred")
	if rela == nil || dynamic == nil || deferred == nil || deferred.Size != 16 {
		return fmt.Errorf("a section is missing")
	}
	const size = 24 // of an elf.Rela64
	list := image[rela.Offset : rela.Offset+rela.Size]
	var relative, others, taken []byte
	for at := 0; at < len(list); at += size {
		entry := list[at : at+size]
		where := binary.LittleEndian.Uint64(entry)
		kind := elf.R_X86_64(binary.LittleEndian.Uint64(entry[8:]))
		switch {
		case kind != elf.R_X86_64_RELATIVE:
			others = append(others, entry...)
		case within(goAreas, where):
			taken = append(taken, entry...)
		default:
			relative = append(relative, entry...)
		}
	}
	kept := uint64(len(relative) + len(others))
	copy(list, bytes.Join([][]byte{relative, others, taken}, nil))
	for at := dynamic.Offset; at < dynamic.Offset+dynamic.Size; at += 16 {
		value := image[at+8 : at+16]
		switch elf.DynTag(binary.LittleEndian.Uint64(image[at:])) {
		case elf.DT_RELASZ:
			binary.LittleEndian.PutUint64(value, kept)
		case elf.DT_RELACOUNT:
			binary.LittleEndian.PutUint64(value, uint64(len(relative)/size))
		}
	}
	binary.LittleEndian.PutUint64(image[deferred.Offset:], rela.Addr+kept)
	binary.LittleEndian.PutUint64(image[deferred.Offset+8:], uint64(len(taken)/size))
	return nil
}

func within(areas []area, address uint64) bool {
	for _, a := range areas {
		if address >= a.start && address < a.end {
			return true
		}
	}
	return false
}
