// SPDX-License-Identifier: Apache-2.0

package preload_test

import (
	"debug/elf"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite symbols.golden")

const golden = "symbols.golden"

// TestExportedSymbols: the library exports the libc names it interposes and
// nothing else. A change of the list must be meant: go test -update.
func TestExportedSymbols(t *testing.T) {
	t.Parallel()
	got := strings.Join(exportedSymbols(t), "\n") + "\n"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("exported:\n%s\nwant (%s):\n%s", got, golden, want)
	}
}

func exportedSymbols(t *testing.T) []string {
	t.Helper()
	lib, err := elf.Open(build(t, "libetran.so"))
	if err != nil {
		t.Fatal(err)
	}
	defer lib.Close()
	all, err := lib.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range all {
		if s.Section != elf.SHN_UNDEF {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names
}

// TestNothingRunsAtLoad: no initialiser of the Go archive is left where the
// dynamic linker would call it. What is left is the compiler's frame_dummy and
// the library's constructor.
func TestNothingRunsAtLoad(t *testing.T) {
	t.Parallel()
	lib, err := elf.Open(build(t, "libetran.so"))
	if err != nil {
		t.Fatal(err)
	}
	defer lib.Close()
	if s := lib.Section(".init_array"); s == nil || s.Size != 2*8 {
		t.Errorf(".init_array: %+v, want two entries", s)
	}
	if s := lib.Section("et_go_init"); s == nil || s.Size != 8 {
		t.Errorf("et_go_init: %+v, want one entry", s)
	}
	// Go's relocations are not the dynamic linker's (shim/relocs).
	size, err := lib.DynValue(elf.DT_RELASZ)
	if all := lib.Section(".rela.dyn"); err != nil || all == nil || len(size) != 1 || size[0] > all.Size/10 {
		t.Errorf("relocations at load: %v octets, %v, of %+v", size, err, all)
	}
}
