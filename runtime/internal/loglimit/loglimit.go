// SPDX-License-Identifier: Apache-2.0

// Package loglimit keeps a log readable and its file small: programs can make
// the daemon say the same thing as often as they like.
package loglimit

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// A message may come so often at once, and then so often per second.
	burst     = 50
	perSecond = 1
)

// Handler passes records on, but each message only so often. The first record
// after others were left out says how many.
type Handler struct {
	next     slog.Handler
	messages *messages
}

type messages struct {
	mu     sync.Mutex
	bucket map[string]*bucket
}

// bucket is one message's right to be logged.
type bucket struct {
	used   float64
	last   time.Time
	missed int
}

// New wraps a handler.
func New(next slog.Handler) *Handler {
	return &Handler{next, &messages{bucket: map[string]*bucket{}}}
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.next.WithAttrs(attrs), h.messages}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.next.WithGroup(name), h.messages}
}

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	missed, ok := h.messages.admit(r.Message, r.Time)
	if !ok {
		return nil
	}
	if missed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("left_out", missed))
	}
	return h.next.Handle(ctx, r)
}

// admit says whether a message may pass, and how many did not before it.
func (m *messages) admit(message string, now time.Time) (missed int, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.bucket[message] // messages are constants: the map is small
	if b == nil {
		b = &bucket{last: now}
		m.bucket[message] = b
	}
	b.used = max(0, b.used-now.Sub(b.last).Seconds()*perSecond)
	b.last = now
	if b.used+1 > burst {
		b.missed++
		return 0, false
	}
	b.used++
	missed, b.missed = b.missed, 0
	return missed, true
}
