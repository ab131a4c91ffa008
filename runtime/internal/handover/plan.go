// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"slices"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
	"github.com/etran-go/etran/runtime/internal/seq"
)

// ranges is what a demotion takes out of the arena: sequence numbers that
// were checked against the record, which the program cannot write.
type ranges struct {
	// Unread octets are [read, rcvNxt) of the receive ring.
	read, rcvNxt seq.Num
	// Octets in flight are [sndUna, sndNxt), unsent ones [sndNxt, sndEnd).
	sndUna, sndNxt, sndEnd seq.Num
}

// check turns the arena's words into ranges. Words that make no sense cost the
// program its own octets, never more: ok is false then. acked is the highest
// acknowledgement known.
func check(conn *abi.Conn, w arena.Words, acked seq.Num) (r ranges, ok bool) {
	rcvOk := r.checkReceived(conn, w.Rcv)
	sndOk := r.checkSent(conn, w.Snd, acked)
	return r, rcvOk && sndOk
}

// checkReceived: the library can have received no more than was delivered and
// no less than it acknowledged.
func (r *ranges) checkReceived(conn *abi.Conn, w arena.RcvWords) bool {
	low, high := seq.Num(conn.RcvNxt), seq.Num(conn.RcvHigh)
	if high.Before(low) {
		high = low
	}
	nxt, read := seq.Num(w.Nxt), seq.Num(w.Read)
	if nxt.Between(low, high) && nxt.Minus(read) >= 0 && nxt.Minus(read) <= abi.RcvBuf {
		r.read, r.rcvNxt = read, nxt
		return true
	}
	r.read, r.rcvNxt = low, low
	return false
}

// checkSent: what was sent and not acknowledged must still be kept.
func (r *ranges) checkSent(conn *abi.Conn, w arena.SndWords, acked seq.Num) bool {
	r.sndUna, r.sndNxt = seq.Max(seq.Num(conn.SndUna), acked), seq.Num(conn.SndNxt)
	end := seq.Num(w.End)
	if end.Minus(r.sndNxt) >= 0 && end.Minus(r.sndUna) <= abi.SndBuf {
		r.sndEnd = end
		return true
	}
	r.sndEnd = r.sndNxt
	return false
}

func (r *ranges) inFlightLen() int { return r.sndNxt.Minus(r.sndUna) }
func (r *ranges) unsentLen() int   { return r.sndEnd.Minus(r.sndNxt) }
func (r *ranges) unreadLen() int   { return r.rcvNxt.Minus(r.read) }

// highest is where received octets end at most: nothing beyond was ever
// delivered, nor is there room for more.
func (r *ranges) highest(conn *abi.Conn) seq.Num {
	high, room := seq.Max(seq.Num(conn.RcvHigh), r.rcvNxt), r.read.Add(abi.RcvBuf)
	if room.Before(high) {
		return room
	}
	return high
}

// contents is what a demotion found in the arena and in the rings: copied and
// checked.
type contents struct {
	ranges
	words arena.Words
	sane  bool
	// unread are the octets of [read, rcvNxt), beyond those after a hole.
	unread           []byte
	beyond           []chunk
	inFlight, unsent []byte
}

// chunk is a piece of the received stream.
type chunk struct {
	seq  seq.Num
	data []byte
}

func (c *chunk) end() seq.Num { return c.seq.Add(len(c.data)) }

// cut removes what lies outside [from, to); false if nothing is left.
func (c *chunk) cut(from, to seq.Num) bool {
	if n := from.Minus(c.seq); n > 0 {
		c.data = c.data[min(n, len(c.data)):]
		c.seq = from
	}
	c.data = c.data[:max(min(len(c.data), to.Minus(c.seq)), 0)]
	return len(c.data) > 0
}

// add joins chunks to the unread octets as far as they follow without a hole;
// the rest lies beyond. Octets from `highest` on are not believed.
func (c *contents) add(chunks []chunk, highest seq.Num) {
	// Near enough for their order to make sense.
	chunks = slices.DeleteFunc(chunks, func(k chunk) bool {
		distance := k.seq.Minus(c.rcvNxt)
		return distance < -abi.RcvBuf || distance > abi.RcvBuf
	})
	slices.SortFunc(chunks, func(a, b chunk) int { return a.seq.Minus(b.seq) })
	edge := c.rcvNxt
	for _, k := range chunks {
		if !k.cut(edge, highest) {
			continue
		}
		if k.seq == c.rcvNxt {
			c.unread = append(c.unread, k.data...)
			c.rcvNxt = k.end()
		} else {
			c.beyond = append(c.beyond, k)
		}
		edge = k.end()
	}
}
