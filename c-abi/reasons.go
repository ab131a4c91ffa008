// SPDX-License-Identifier: Apache-2.0

package abi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"
)

// A reasonText is one line of a list in reasons.h.
type reasonText struct{ tool, text string }

// reasonTexts reads both lists from the embedded object, where the C compiler
// put them. The object is part of this binary, so a failure is a build fault.
var reasonTexts = sync.OnceValue(func() (lists [2]map[uint32]reasonText) {
	spec, err := loadAbi()
	if err != nil {
		panic(fmt.Sprintf("abi: embedded object: %v", err))
	}
	for i, name := range []string{abiVarDropReasons, abiVarPathReasons} {
		lists[i] = parseReasons(spec.Variables[name].Value)
	}
	return lists
})

func parseReasons(data []byte) map[uint32]reasonText {
	list := make(map[uint32]reasonText)
	var r abiEtranReason
	for size := binary.Size(r); len(data) >= size; data = data[size:] {
		value := binary.NativeEndian.Uint32(data)
		tool := data[4 : 4+len(r.Tool)]
		text := data[4+len(r.Tool) : size]
		list[value] = reasonText{cString(tool), cString(text)}
	}
	return list
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// String returns the name tools print, such as "no_credit".
func (r DropReason) String() string { return toolName(reasonTexts()[0], uint32(r)) }

// Text returns the sentence that explains the reason.
func (r DropReason) Text() string { return reasonTexts()[0][uint32(r)].text }

// String returns the name tools print, such as "no_daemon".
func (r PathReason) String() string { return toolName(reasonTexts()[1], uint32(r)) }

// Text returns the sentence that explains the reason.
func (r PathReason) Text() string { return reasonTexts()[1][uint32(r)].text }

func toolName(list map[uint32]reasonText, value uint32) string {
	if r, ok := list[value]; ok {
		return r.tool
	}
	return strconv.FormatUint(uint64(value), 10)
}
