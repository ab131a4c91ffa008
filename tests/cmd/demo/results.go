// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/tests/internal/median"
)

// results are what the demo writes to demo.json.
type results struct {
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Arch    string    `json:"arch"`
	Time    time.Time `json:"time"`
	Rounds  int       `json:"rounds"`
	Entries []entry   `json:"results"`
}

// entry sums up the rounds of one variant with one load and command.
type entry struct {
	Command string `json:"command"`
	Load    string `json:"load"`
	Variant string `json:"variant"`
	title   string
	// Medians over the rounds.
	Rate  float64 `json:"requests_per_second"`
	P50Us float64 `json:"p50_us"`
	P99Us float64 `json:"p99_us"`
	// Rates of the rounds.
	Rates []float64 `json:"rates"`
	// Medians of the rounds' ratios; absent without the other variant.
	ToKernel   float64 `json:"ratio_to_kernel,omitempty"`
	ToSpinning float64 `json:"ratio_to_spinning,omitempty"`
	// FastShare is the part of the payload that took the fast path, over
	// both commands with this load; only for eTran.
	FastShare *float64 `json:"fast_path_share,omitempty"`
}

// results sums up the session.
func (s *session) results() *results {
	r := &results{Kernel: kernelRelease(), CPUs: runtime.NumCPU(), Arch: runtime.GOARCH, Time: time.Now().UTC()}
	for _, command := range []string{"GET", "SET"} {
		for _, sh := range shapes {
			for _, v := range s.variants {
				e := s.entry(v, sh.title, command)
				r.Rounds = len(e.Rates)
				r.Entries = append(r.Entries, e)
			}
		}
	}
	return r
}

func (s *session) entry(v variant, load, command string) entry {
	own := s.pick(v.name, load, command)
	e := entry{Command: command, Load: load, Variant: v.name, title: v.title}
	e.Rates = column(own, func(sm sample) float64 { return sm.reply.Rate })
	e.Rate = median.Of(e.Rates)
	e.P50Us = median.Of(column(own, func(sm sample) float64 { return sm.reply.P50 }))
	e.P99Us = median.Of(column(own, func(sm sample) float64 { return sm.reply.P99 }))
	e.ToKernel = medianRatio(own, s.pick("kernel", load, command))
	e.ToSpinning = medianRatio(own, s.pick("spinning", load, command))
	if v.fast {
		share := fastShare(own)
		e.FastShare = &share
	}
	return e
}

// pick returns the samples of a variant, in the order of the rounds.
func (s *session) pick(variant, load, command string) []sample {
	var found []sample
	for _, sm := range s.samples {
		if sm.variant == variant && sm.shape == load && sm.command == command {
			found = append(found, sm)
		}
	}
	return found
}

func column(samples []sample, of func(sample) float64) []float64 {
	var values []float64
	for _, sm := range samples {
		values = append(values, of(sm))
	}
	return values
}

// medianRatio compares the rates of the same rounds; 0 if there is nothing to
// compare with.
func medianRatio(own, other []sample) float64 {
	if len(other) != len(own) {
		return 0
	}
	var ratios []float64
	for i := range own {
		ratios = append(ratios, own[i].reply.Rate/other[i].reply.Rate)
	}
	return median.Of(ratios)
}

func fastShare(samples []sample) float64 {
	var fast, all uint64
	for _, sm := range samples {
		fast += sm.fast
		all += sm.fast + sm.kernel
	}
	if all == 0 {
		return 0
	}
	return float64(fast) / float64(all)
}

// checkShare fails if the runs that should have taken the fast path did not.
func (r *results) checkShare() error {
	var bad []string
	for _, e := range r.Entries {
		if e.FastShare != nil && *e.FastShare < requiredShare {
			bad = append(bad, fmt.Sprintf("%s %s: %.2f %%", e.Command, e.Load, 100**e.FastShare))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("not what it should be: less than %.0f %% of the payload took the fast path (%s), "+
			"so the numbers for eTran are partly the kernel's", 100*requiredShare, strings.Join(bad, ", "))
	}
	return nil
}

func printTable(w io.Writer, r *results) error {
	const format = "%-20s  %-21s %12s %8s %8s %9s %11s %10s\n"
	fmt.Fprintf(w, format, "load", "TCP", "requests/s", "p50 µs", "p99 µs", "× kernel", "× spinning", "fast path")
	last := ""
	for _, e := range r.Entries {
		load := e.Command + ", " + e.Load
		if load == last {
			load = ""
		} else {
			last = load
		}
		share := "-"
		if e.FastShare != nil {
			share = fmt.Sprintf("%.2f %%", 100**e.FastShare)
		}
		fmt.Fprintf(w, format, load, e.title, thousands(e.Rate), thousands(e.P50Us), thousands(e.P99Us),
			ratio(e.ToKernel), ratio(e.ToSpinning), share)
	}
	_, err := fmt.Fprintf(w, "\nMedians of %d interleaved rounds; ratios are medians of the rounds' ratios. "+
		"Kernel %s, %d CPUs.\nkernel TCP: a veth that never sees XDP. spinning: the same under libetran.so "+
		"without promotion.\neTran: libetran.so at both ends. × 16: sixteen requests pipelined.\n",
		r.Rounds, r.Kernel, r.CPUs)
	return err
}

func ratio(x float64) string {
	if x == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", x)
}

func writeJSON(path string, r *results) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the results: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return nil
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
