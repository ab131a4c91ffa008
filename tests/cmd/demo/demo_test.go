// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseBenchmark(t *testing.T) {
	got, err := parseBenchmark([]byte("WARNING: Could not fetch server CONFIG\n" +
		`"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"` + "\n" +
		`"SET","16000.50","0.050","0.008","0.048","0.055","0.079","0.500"` + "\n" +
		`"GET","17000.00","0.050","0.008","0.047","0.055","0.080","0.500"` + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != (benchmark{"SET", 16000.5, 48, 79}) || got[1].Command != "GET" {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"", "\"test\",\"rps\"\n\"SET\",\"1\"\n", "\"test\",\"rps\"\n\"SET\"\n"} {
		if got, err := parseBenchmark([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v and no error", bad, got)
		}
	}
}

// measured is a session of two rounds in which eTran is 3 and 5 times as fast
// as the kernel, and half of that compared with spinning.
func measured() *session {
	s := &session{variants: allVariants}
	factors := map[string][2]float64{"kernel": {1, 1}, "spinning": {2, 2}, "etran": {3, 5}}
	for round := range 2 {
		for i, sh := range shapes {
			for _, v := range allVariants {
				for _, command := range []string{"SET", "GET"} {
					rate := 20000 * math.Pow(8, float64(i)) * factors[v.name][round]
					s.samples = append(s.samples, sample{
						variant: v.name, shape: sh.title, command: command, round: round,
						reply: benchmark{command, rate, 1e6 / rate, 2e6 / rate},
						fast:  995, kernel: 5,
					})
				}
			}
		}
	}
	return s
}

func TestResults(t *testing.T) {
	r := measured().results()
	if len(r.Entries) != 2*len(shapes)*len(allVariants) || r.Rounds != 2 {
		t.Fatalf("%d entries, %d rounds", len(r.Entries), r.Rounds)
	}
	e := r.Entries[2]
	if e.Variant != "etran" || e.Command != "GET" || e.Rate != 80000 || e.ToKernel != 4 || e.ToSpinning != 2 {
		t.Errorf("got %+v", e)
	}
	if e.FastShare == nil || *e.FastShare != 0.995 {
		t.Errorf("fast path's share: %v", e.FastShare)
	}
	if err := r.checkShare(); err != nil {
		t.Errorf("99.5 %%: %v", err)
	}
	*e.FastShare = 0.9
	if err := r.checkShare(); err == nil || !strings.Contains(err.Error(), "GET 1 client: 90.00 %") {
		t.Errorf("90 %%: %v", err)
	}
}

func TestReport(t *testing.T) {
	r := measured().results()
	var table bytes.Buffer
	if err := printTable(&table, r); err != nil {
		t.Fatal(err)
	}
	if want := "eTran                       80,000       13       27      4.00        2.00    99.50 %"; !strings.Contains(table.String(), want) {
		t.Errorf("no line %q in\n%s", want, &table)
	}
	dir := t.TempDir()
	if kept := os.Getenv("DEMO_TEST_DIR"); kept != "" {
		dir = kept // to look at the picture
	}
	if err := writeJSON(filepath.Join(dir, "demo.json"), r); err != nil {
		t.Error(err)
	}
	if err := drawPlot(filepath.Join(dir, "demo.png"), r); err != nil {
		t.Error(err)
	}
}

func TestChooseVariants(t *testing.T) {
	if got, err := chooseVariants([]string{"etran", "kernel"}); err != nil || len(got) != 2 || got[0].name != "kernel" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range [][]string{{""}, {"fast"}, {"kernel", "kernel"}} {
		if got, err := chooseVariants(bad); err == nil {
			t.Errorf("%q: got %v", bad, got)
		}
	}
}

func TestThousands(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 999.4: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(x); got != want {
			t.Errorf("thousands(%v) = %s, want %s", x, got, want)
		}
	}
}
