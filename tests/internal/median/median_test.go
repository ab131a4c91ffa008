// SPDX-License-Identifier: Apache-2.0

package median

import "testing"

func TestOf(t *testing.T) {
	if got := Of([]float64{3, 1, 2}); got != 2 {
		t.Errorf("odd: %v", got)
	}
	if got := Of([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Errorf("even: %v", got)
	}
}
