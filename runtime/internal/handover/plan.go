// SPDX-License-Identifier: Apache-2.0

package handover

import (
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

func (r *ranges) unread() int   { return r.rcvNxt.Minus(r.read) }
func (r *ranges) inFlight() int { return r.sndNxt.Minus(r.sndUna) }
func (r *ranges) unsent() int   { return r.sndEnd.Minus(r.sndNxt) }
