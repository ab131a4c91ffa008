// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"bytes"
	"debug/dwarf"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// A field is one scalar of a structure; arrays and nested structures are taken
// apart. What C, BTF and Go say about it must be equal.
type field struct {
	offset, size int64
	signed       bool
}

// A layout maps the path of every scalar, such as "range[3].start", to its
// place; the path "" stands for the whole structure.
type layout map[string]field

// fieldName makes C's snd_una and Go's SndUna comparable.
func fieldName(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }

func join(path, name string) string {
	if path == "" {
		return fieldName(name)
	}
	return path + "." + fieldName(name)
}

func TestLayout(t *testing.T) {
	c := dwarfLayouts(t)
	b := btfLayouts(t)
	for _, name := range slices.Sorted(maps.Keys(c)) {
		t.Run(name, func(t *testing.T) {
			value, ok := sharedStructs[name]
			if !ok {
				t.Fatalf("struct %s of the headers is not in abi.bpf.c", name)
			}
			g := make(layout)
			goFlatten(t, g, "", 0, reflect.TypeOf(value))
			compare(t, "BTF", b[name], c[name])
			compare(t, "Go", g, c[name])
		})
	}
	for name := range sharedStructs {
		if _, ok := c[name]; !ok {
			t.Errorf("struct %s: not found in the DWARF of the headers", name)
		}
	}
}

func compare(t *testing.T, side string, got, want layout) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[path]; !ok {
			t.Errorf("%s lacks %q", side, path)
		} else if g != want[path] {
			t.Errorf("%q: %s has %+v, C has %+v", path, side, g, want[path])
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s has %q, C has not", side, path)
		}
	}
}

// TestDetectsMismatch makes sure that the comparison can fail: the layouts of
// two different structures are not equal.
func TestDetectsMismatch(t *testing.T) {
	var a, b layout = make(layout), make(layout)
	goFlatten(t, a, "", 0, reflect.TypeFor[struct {
		A uint8
		B uint32
	}]())
	goFlatten(t, b, "", 0, reflect.TypeFor[struct{ A, B uint32 }]())
	if maps.Equal(a, b) {
		t.Error("layouts of different structures compare equal")
	}
}

func goFlatten(t *testing.T, l layout, path string, offset int64, typ reflect.Type) {
	t.Helper()
	switch typ.Kind() {
	case reflect.Struct:
		if path == "" {
			l[""] = field{0, int64(typ.Size()), false}
		}
		for f := range typ.Fields() {
			if f.Name != "_" {
				goFlatten(t, l, join(path, f.Name), offset+int64(f.Offset), f.Type)
			}
		}
	case reflect.Array:
		for i := range typ.Len() {
			goFlatten(t, l, fmt.Sprintf("%s[%d]", path, i), offset+int64(i)*int64(typ.Elem().Size()), typ.Elem())
		}
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		l[path] = field{offset, int64(typ.Size()), true}
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		l[path] = field{offset, int64(typ.Size()), false}
	default:
		t.Errorf("%s: Go kind %s in a shared structure", path, typ.Kind())
	}
}

func btfLayouts(t *testing.T) map[string]layout {
	t.Helper()
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(_AbiBytes))
	if err != nil {
		t.Fatal("BTF of the embedded object: ", err)
	}
	layouts := make(map[string]layout)
	for name := range sharedStructs {
		var s *btf.Struct
		if err := spec.TypeByName(name, &s); err != nil {
			t.Fatal(err)
		}
		layouts[name] = make(layout)
		btfFlatten(t, layouts[name], "", 0, s)
	}
	return layouts
}

func btfFlatten(t *testing.T, l layout, path string, offset int64, typ btf.Type) {
	t.Helper()
	switch typ := btf.UnderlyingType(typ).(type) {
	case *btf.Struct:
		if path == "" {
			l[""] = field{0, int64(typ.Size), false}
		}
		for _, m := range typ.Members {
			if m.BitfieldSize != 0 || m.Name == "" {
				t.Errorf("%s.%s: bitfields and anonymous members are forbidden", path, m.Name)
			}
			btfFlatten(t, l, join(path, m.Name), offset+int64(m.Offset.Bytes()), m.Type)
		}
	case *btf.Array:
		size, err := btf.Sizeof(typ.Type)
		if err != nil {
			t.Fatal(err)
		}
		for i := range int(typ.Nelems) {
			btfFlatten(t, l, fmt.Sprintf("%s[%d]", path, i), offset+int64(i*size), typ.Type)
		}
	case *btf.Int:
		l[path] = field{offset, int64(typ.Size), typ.Encoding != btf.Unsigned}
	default:
		t.Errorf("%s: BTF kind %T in a shared structure", path, typ)
	}
}

// dwarfLayouts compiles the headers as the library sees them and returns all
// structures called etran_*.
func dwarfLayouts(t *testing.T) map[string]layout {
	t.Helper()
	file, err := elf.Open(compileHeaders(t))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	data, err := file.DWARF()
	if err != nil {
		t.Fatal(err)
	}
	layouts := make(map[string]layout)
	for r := data.Reader(); ; {
		entry, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if entry == nil {
			return layouts
		}
		name, _ := entry.Val(dwarf.AttrName).(string)
		if entry.Tag != dwarf.TagStructType || !strings.HasPrefix(name, "etran_") {
			continue
		}
		typ, err := data.Type(entry.Offset)
		if err != nil {
			t.Fatal(err)
		}
		layouts[name] = make(layout)
		dwarfFlatten(t, layouts[name], "", 0, typ)
	}
}

func compileHeaders(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	src, obj := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi.o")
	if err := os.WriteFile(src, []byte("#include \"etran/abi.h\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// No variable uses the structures, so the compiler must be told to keep them.
	cmd := exec.Command("gcc", "-std=gnu11", "-g", "-fno-eliminate-unused-debug-types",
		"-Wall", "-Wextra", "-Werror", "-I", "include", "-c", "-o", obj, src)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return obj
}

func dwarfFlatten(t *testing.T, l layout, path string, offset int64, typ dwarf.Type) {
	t.Helper()
	switch typ := typ.(type) {
	case *dwarf.TypedefType:
		dwarfFlatten(t, l, path, offset, typ.Type)
	case *dwarf.StructType:
		if typ.Kind != "struct" {
			t.Errorf("%s: %s in a shared structure", path, typ.Kind)
		}
		if path == "" {
			l[""] = field{0, typ.ByteSize, false}
		}
		for _, f := range typ.Field {
			dwarfFlatten(t, l, join(path, f.Name), offset+f.ByteOffset, f.Type)
		}
	case *dwarf.ArrayType:
		for i := range typ.Count {
			dwarfFlatten(t, l, fmt.Sprintf("%s[%d]", path, i), offset+i*typ.Type.Size(), typ.Type)
		}
	case *dwarf.IntType, *dwarf.CharType:
		l[path] = field{offset, typ.Size(), true}
	case *dwarf.UintType, *dwarf.UcharType:
		l[path] = field{offset, typ.Size(), false}
	default:
		t.Errorf("%s: C type %s in a shared structure", path, typ)
	}
}
