// SPDX-License-Identifier: Apache-2.0

// Package control speaks the protocol between programs and the daemon
// (c-abi/include/etran/control.h). What a program sends is checked here for
// form: size, magic, version, type and number of descriptors.
package control

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// ErrProtocol means that a program sent what is no message.
var ErrProtocol = errors.New("not a control message")

// Message is one message of a program.
type Message struct {
	Type abi.MsgType
	// Fd is the descriptor that came with it, -1 if none does.
	Fd int
	// Slot is filled for messages about a slot, Register for REGISTER.
	Slot     abi.MsgSlot
	Register abi.MsgRegister
}

// Close closes the descriptor of a message that nobody takes up.
func (m *Message) Close() {
	if m.Fd >= 0 {
		unix.Close(m.Fd)
	}
}

// Comm is the program's name for tools.
func (m *Message) Comm() string {
	name := make([]byte, 0, abi.CommLen)
	for _, c := range m.Register.Comm {
		if c == 0 {
			break
		}
		if c < ' ' { // also what is beyond ASCII: the type is signed
			c = '?'
		}
		name = append(name, byte(c))
	}
	return string(name)
}

// kinds are the messages that a program may send.
var kinds = map[abi.MsgType]struct{ size, fds int }{
	abi.MsgTypeRegister:      {binary.Size(abi.MsgRegister{}), 0},
	abi.MsgTypeObserve:       {binary.Size(abi.MsgSlot{}), 1},
	abi.MsgTypeSwitch:        {binary.Size(abi.MsgSlot{}), 0},
	abi.MsgTypeDemote:        {binary.Size(abi.MsgSlot{}), 0},
	abi.MsgTypeCancel:        {binary.Size(abi.MsgSlot{}), 0},
	abi.MsgTypeReinject:      {binary.Size(abi.MsgSlot{}), 0},
	abi.MsgTypeDemoteForeign: {binary.Size(abi.MsgSlot{}), 1},
	abi.MsgTypeTap:           {binary.Size(abi.MsgSlot{}), 0},
	abi.MsgTypeRingsReady:    {binary.Size(abi.MsgSlot{}), 0},
}

// Decode checks and reads one packet. Its descriptors stay the caller's if
// there is an error.
func Decode(packet []byte, fds []int) (Message, error) {
	m := Message{Fd: -1}
	var h abi.MsgHeader
	if _, err := binary.Decode(packet, binary.NativeEndian, &h); err != nil {
		return m, fmt.Errorf("packet of %d octets: %w", len(packet), ErrProtocol)
	}
	if h.Magic != abi.Magic || h.Version != abi.Version {
		return m, fmt.Errorf("magic %#x, version %d: %w", h.Magic, h.Version, ErrProtocol)
	}
	m.Type = abi.MsgType(h.Type)
	kind, known := kinds[m.Type]
	if !known || len(packet) != kind.size || len(fds) != kind.fds {
		return m, fmt.Errorf("message %d of %d octets with %d descriptors: %w",
			h.Type, len(packet), len(fds), ErrProtocol)
	}
	var body any = &m.Slot
	if m.Type == abi.MsgTypeRegister {
		body = &m.Register
	}
	if _, err := binary.Decode(packet, binary.NativeEndian, body); err != nil {
		return m, fmt.Errorf("message %d: %w: %w", h.Type, err, ErrProtocol)
	}
	if kind.fds == 1 {
		m.Fd = fds[0]
	}
	return m, nil
}

// header is the beginning of a message of ours. The generated structures embed
// it without its name.
func header(t abi.MsgType) abi.MsgHeader {
	return abi.MsgHeader{Magic: abi.Magic, Version: abi.Version, Type: uint16(t)}
}

// Slot makes a message about a slot.
func Slot(t abi.MsgType, slot, generation uint32, reason abi.PathReason) *abi.MsgSlot {
	return &abi.MsgSlot{H: header(t), Slot: slot, Generation: generation, Reason: uint32(reason)}
}

// Done makes an answer; errno 0 is success.
func Done(t abi.MsgType, errno int32) *abi.MsgDone {
	return &abi.MsgDone{H: header(t), Error: errno}
}

// Refused makes the answer to a REGISTER that is turned down.
func Refused(reason abi.PathReason) *abi.MsgRefused {
	return &abi.MsgRefused{H: header(abi.MsgTypeRefused), Reason: uint32(reason)}
}

// Registered completes the answer to a REGISTER.
func Registered(m abi.MsgRegistered) *abi.MsgRegistered {
	m.H = header(abi.MsgTypeRegistered)
	return &m
}

// Rings completes a message with rings.
func Rings(m abi.MsgRings) *abi.MsgRings {
	m.H = header(abi.MsgTypeRings)
	return &m
}
