// SPDX-License-Identifier: Apache-2.0

// Package median is how the measuring tools sum up their rounds.
package median

import "slices"

// Of is the median of a list that isn't empty, which it leaves as it is.
func Of(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}
