// SPDX-License-Identifier: Apache-2.0

package repair

import "golang.org/x/sys/unix"

// Bits of tcpi_options (linux/tcp.h).
const (
	optTimestamps = 1
	optSACK       = 2
	optWscale     = 4
	optECN        = 8
	optECNSeen    = 16
	optUsecTS     = 64
)

// Info is TCP_INFO as far as a switch needs it. The window scales are not in
// the public Go type: the C one keeps them in a bit field.
type Info struct {
	unix.TCPInfo
	SndWscale, RcvWscale uint8
}

// Negotiated returns the options of the handshake, without the MSS.
func (i *Info) Negotiated() Options {
	return Options{
		Timestamps:  i.Options&optTimestamps != 0,
		SACK:        i.Options&optSACK != 0,
		WindowScale: i.Options&optWscale != 0,
		SndWscale:   i.SndWscale,
		RcvWscale:   i.RcvWscale,
	}
}

// ECN says whether explicit congestion notification was negotiated.
func (i *Info) ECN() bool { return i.Options&(optECN|optECNSeen) != 0 }

// MicrosecondTimestamps says whether timestamps count in microseconds.
func (i *Info) MicrosecondTimestamps() bool { return i.Options&optUsecTS != 0 }

// Established says whether the connection is open in both directions.
func (i *Info) Established() bool { return i.State == unix.BPF_TCP_ESTABLISHED }
