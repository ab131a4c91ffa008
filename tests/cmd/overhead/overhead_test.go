// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestCost(t *testing.T) {
	added := cost{name: "call", unit: "ns", bound: 20, plain: []float64{100, 200, 300}, under: []float64{110, 400, 310}}
	if got := added.value(); got != 10 {
		t.Errorf("the median of what is added is %v, want 10", got)
	}
	if !added.met() || strings.Contains(added.String(), "MISSED") {
		t.Errorf("missed: %v", &added)
	}
	added.bound = 9
	if added.met() || !strings.Contains(added.String(), "MISSED") {
		t.Errorf("met: %v", &added)
	}
	rate := cost{bound: 0.95, rate: true, plain: []float64{100, 100}, under: []float64{90, 98}}
	if got := rate.value(); got != 0.94 || rate.met() {
		t.Errorf("the ratio is %v, met %v, want 0.94 and not", got, rate.met())
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]float64{
		"1234\n": 1234,
		"\"test\",\"rps\",\"avg\"\n\"GET\",\"46000.50\",\"0.5\"\n": 46000.5,
	} {
		if got, err := parseRate(text); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	if _, err := parseRate("nonsense"); err == nil {
		t.Error("nonsense has a rate")
	}
}
