// SPDX-License-Identifier: Apache-2.0

// Command tally runs the C unit tests (ctest) and the Go tests, shows what
// failed and what was skipped with its output, and ends with one line:
//
//	N passed, N failed, N skipped
//
// Usage: tally CTEST-DIR [go test arguments]
package main

import (
	"bufio"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

type counts struct{ passed, failed, skipped int }

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: tally CTEST-DIR [go test arguments]")
		os.Exit(2)
	}
	var total counts
	err := errors.Join(runCTest(&total, os.Args[1]), runGoTest(&total, os.Args[2:]))
	if err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", total.passed, total.failed, total.skipped)
	if err != nil || total.failed > 0 {
		os.Exit(1)
	}
}

func runCTest(total *counts, dir string) error {
	report, err := filepath.Abs(filepath.Join(dir, "ctest.xml"))
	if err != nil {
		return err
	}
	cmd := exec.Command("ctest", "--test-dir", dir, "--output-on-failure", "--output-junit", report)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	runErr := cmd.Run()

	data, err := os.ReadFile(report)
	if err != nil {
		return fmt.Errorf("ctest: %w", errors.Join(runErr, err))
	}
	var suite struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Disabled int `xml:"disabled,attr"`
		Skipped  int `xml:"skipped,attr"`
	}
	if err := xml.Unmarshal(data, &suite); err != nil {
		return fmt.Errorf("%s: %w", report, err)
	}
	skipped := suite.Disabled + suite.Skipped
	total.failed += suite.Failures
	total.skipped += skipped
	total.passed += suite.Tests - suite.Failures - skipped
	return runErr
}

// An event is a line of go test -json (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
}

func runGoTest(total *counts, args []string) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	if err := total.read(out); err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	return nil
}

// read counts the tests of all packages. A package that fails though none of
// its tests did (it does not build, it exits early) counts as one failure.
func (total *counts) read(r io.Reader) error {
	output := make(map[string]*strings.Builder) // by package and test
	failures := make(map[string]int)            // by package
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // build output of an old toolchain
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch {
		case e.Action == "output" || e.Action == "build-output":
			if output[key] == nil {
				output[key] = new(strings.Builder)
			}
			output[key].WriteString(e.Output)
			if e.Action == "build-output" {
				fmt.Print(e.Output)
			}
		case e.Test != "":
			total.test(e, failures, output[key])
		default:
			total.pkg(e, failures[e.Package], output[key])
		}
	}
	return lines.Err()
}

func (total *counts) test(e event, failures map[string]int, output *strings.Builder) {
	switch e.Action {
	case "pass":
		total.passed++
		return
	case "skip":
		total.skipped++
	case "fail":
		total.failed++
		failures[e.Package]++
	default:
		return
	}
	fmt.Printf("--- %s %s: %s\n", e.Action, e.Package, e.Test)
	if output != nil {
		fmt.Print(output)
	}
}

func (total *counts) pkg(e event, failures int, output *strings.Builder) {
	if e.Action != "pass" && e.Action != "fail" {
		return
	}
	if e.Action == "fail" && failures == 0 {
		total.failed++
		if output != nil {
			fmt.Print(output)
		}
	}
	fmt.Printf("%s\t%s\t%.1fs\n", e.Action, e.Package, e.Elapsed)
}
