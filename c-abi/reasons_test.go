// SPDX-License-Identifier: Apache-2.0

package abi

import "testing"

// Every reason below the end marker has a name and a sentence that fit the
// fields that carry them here.
func TestReasonsHaveTexts(t *testing.T) {
	for r := range DropReasonMax {
		if r.String() == "" || r.Text() == "" {
			t.Errorf("drop reason %d: name %q, text %q", uint32(r), r, r.Text())
		}
	}
	for r := range PathReasonMax {
		if r.String() == "" || r.Text() == "" {
			t.Errorf("path reason %d: name %q, text %q", uint32(r), r, r.Text())
		}
	}
	if got := DropReasonPaws.String(); got != "paws" {
		t.Errorf("DropReasonPaws is called %q", got)
	}
	if got := PathReason(9999).String(); got != "9999" {
		t.Errorf("an unknown reason is called %q", got)
	}
}
