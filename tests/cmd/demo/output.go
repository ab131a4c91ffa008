// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

// benchmark is what redis-benchmark reports of one command.
type benchmark struct {
	Command string
	// Rate is in requests per second.
	Rate float64
	// Latencies in microseconds.
	P50, P99 float64
}

// parseBenchmark reads redis-benchmark's CSV. Columns are found by name: the
// versions of Redis have different ones.
func parseBenchmark(out []byte) ([]benchmark, error) {
	// A warning may come first.
	start := bytes.Index(out, []byte(`"test",`))
	if start < 0 {
		return nil, fmt.Errorf("no header line (Redis 6.2 or newer is needed)")
	}
	rows, err := csv.NewReader(bytes.NewReader(out[start:])).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("reading CSV: %w", err)
	}
	column := make(map[string]int)
	for i, name := range rows[0] {
		column[name] = i
	}
	var replies []benchmark
	for _, row := range rows[1:] {
		b := benchmark{Command: row[0]}
		for name, to := range map[string]*float64{"rps": &b.Rate, "p50_latency_ms": &b.P50, "p99_latency_ms": &b.P99} {
			i, ok := column[name]
			if !ok {
				return nil, fmt.Errorf("no column %q", name)
			}
			if *to, err = strconv.ParseFloat(row[i], 64); err != nil {
				return nil, fmt.Errorf("column %q: %w", name, err)
			}
		}
		b.P50 *= 1000
		b.P99 *= 1000
		replies = append(replies, b)
	}
	return replies, nil
}

// tail keeps the last output of a program for an error message.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

const tailSize = 4000

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if excess := len(t.kept) - tailSize; excess > 0 {
		t.kept = t.kept[excess:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}

// progress tells a human what goes on.
type progress struct {
	w     io.Writer
	start time.Time
}

func newProgress(w io.Writer) *progress { return &progress{w: w, start: time.Now()} }

func (p *progress) line(format string, args ...any) {
	fmt.Fprintf(p.w, "[%3.0f s] %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// thousands formats a number with separators, without decimals.
func thousands(x float64) string {
	digits := strconv.FormatFloat(x, 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
