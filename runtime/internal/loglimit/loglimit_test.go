// SPDX-License-Identifier: Apache-2.0

package loglimit

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestMessagesAreLimitedEachForItself(t *testing.T) {
	var out bytes.Buffer
	h := New(slog.NewTextHandler(&out, nil))
	now := time.Unix(1000, 0)
	say := func(message string) {
		if err := h.Handle(t.Context(), slog.NewRecord(now, slog.LevelWarn, message, 0)); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 * burst {
		say("often")
	}
	say("once")
	if n := strings.Count(out.String(), "msg=often"); n != burst {
		t.Errorf("logged %d times, want %d", n, burst)
	}
	if !strings.Contains(out.String(), "msg=once") {
		t.Error("another message was left out, too")
	}
	out.Reset()
	now = now.Add(2 * time.Second)
	say("often")
	if want := "msg=often left_out=450"; !strings.Contains(out.String(), want) {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestDerivedLoggersShareTheLimit(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(New(slog.NewTextHandler(&out, nil)))
	for range burst {
		log.With("a", 1).Warn("often")
		log.WithGroup("g").Warn("often", "b", 2)
	}
	if n := strings.Count(out.String(), "often"); n != burst {
		t.Errorf("logged %d times, want %d", n, burst)
	}
}
