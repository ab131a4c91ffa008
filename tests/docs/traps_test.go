// SPDX-License-Identifier: Apache-2.0

// Package docs checks what the documents promise and a machine can check.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// tests are the names of all tests and fuzzers in Go, and of the unit tests in C.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "build" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if name, ok := strings.CutSuffix(d.Name(), "_test.c"); ok {
			names[name+"_test"] = true
		}
		if !strings.HasSuffix(d.Name(), "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(text, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Every trap names tests that exist.
func TestTrapsHaveTests(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "\n## Traps\n")
	if !found {
		t.Fatal("ARCHITECTURE.md has no table of traps")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	known := tests(t)
	name := regexp.MustCompile(`\b(?:(?:Test|Fuzz)[A-Z]\w*|[a-z]+_test)\b`)
	rows := 0
	for line := range strings.Lines(table) {
		columns := strings.Split(line, "|")
		if len(columns) != 5 || strings.HasPrefix(columns[1], "-") || strings.TrimSpace(columns[1]) == "trap" {
			continue
		}
		rows++
		named := name.FindAllString(columns[3], -1)
		if len(named) == 0 {
			t.Errorf("no test closes: %s", columns[1])
		}
		for _, n := range named {
			if !known[n] {
				t.Errorf("%s: there is no test %s", strings.TrimSpace(columns[1]), n)
			}
		}
	}
	if rows < 30 {
		t.Errorf("only %d traps found: was the table read?", rows)
	}
}
