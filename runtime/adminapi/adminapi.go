// SPDX-License-Identifier: Apache-2.0

// Package adminapi is the daemon's administration interface: the JSON types
// that etrand serves and the etran tool, the testbed and the demo read, the
// paths they are served at, and a client.
//
// The interface is HTTP over the unix socket SocketName in the daemon's run
// directory. A GET answers with one JSON object; a POST takes one. An answer
// with a status other than 200 carries an Error. Fields are only ever added:
// a client ignores the ones that it does not know.
package adminapi

import "fmt"

// SocketName is the name of the administration socket in the run directory.
const SocketName = "admin.sock"

// DefaultRunDir is where a daemon that was not told otherwise keeps its
// sockets.
const DefaultRunDir = "/run/etran"

// Paths of the interface, with the types that they take and answer.
const (
	PathStatus  = "/v1/status"  // GET: Status
	PathSS      = "/v1/ss"      // GET: SS
	PathStats   = "/v1/stats"   // GET: Stats
	PathPromote = "/v1/promote" // POST SwitchRequest: SwitchResult
	PathDemote  = "/v1/demote"  // POST SwitchRequest: SwitchResult
)

// The values of Conn.Path.
const (
	PathFast   = "fast"
	PathKernel = "kernel"
)

// Status says what the daemon is and whom it serves.
type Status struct {
	Version string `json:"version"`
	Pid     int    `json:"pid"`
	// UptimeSeconds counts from the daemon's start, not from the first
	// attach: an adopted data path may be older.
	UptimeSeconds float64 `json:"uptime_seconds"`
	// Kernel is the running kernel's release, as uname -r prints it.
	Kernel     string      `json:"kernel"`
	Interfaces []Interface `json:"interfaces"`
	Apps       []App       `json:"apps"`
}

// Interface is a network device that the daemon was told to serve.
type Interface struct {
	Name    string `json:"name"`
	Ifindex int    `json:"ifindex"`
	Queues  int    `json:"queues"`
	MTU     int    `json:"mtu"`
	// Mode is how the XDP program is attached: "native" or "generic".
	Mode     string `json:"mode"`
	Attached bool   `json:"attached"`
	// Lost is how often the device or its program went away while the
	// daemon ran.
	Lost uint64 `json:"lost,omitempty"`
	// Sharing is how applications share the interface: "auto", "always" or
	// "never".
	Sharing string `json:"sharing"`
}

// The values of App.Rings.
const (
	RingsDirect = "direct"
	RingsShared = "shared"
)

// App is a registered application: one process that owns frames, taps and
// receive contexts.
type App struct {
	ID   uint32 `json:"id"`
	Pid  int    `json:"pid"`
	Uid  uint32 `json:"uid"`
	Comm string `json:"comm"`
	// Rings is how the application receives on the fast path: RingsDirect if
	// its own XSKs are bound to the interface's queues, RingsShared if it is
	// reached by a veth pair. Empty: it has no rings and stays on the kernel.
	Rings string `json:"rings"`
	// Direct is true if Rings is RingsDirect.
	Direct bool `json:"direct"`
	// Reason says why there are no rings; empty otherwise.
	Reason string `json:"reason,omitempty"`
	// Conns is the number of connections that the application has told
	// the daemon about, on either path.
	Conns int `json:"conns"`
}

// SS lists connections: those on the fast path and those that a registered
// application has on the kernel's.
type SS struct {
	Conns []Conn `json:"conns"`
}

// Conn is one connection as seen from this host. The counters cover the
// connection's whole life over any number of switches.
type Conn struct {
	// ID names the connection for promote and demote: "app:slot".
	ID   string `json:"id"`
	App  uint32 `json:"app"`
	Pid  int    `json:"pid"`
	Comm string `json:"comm"`
	// Local and Remote are "address:port", as netip.AddrPort prints them.
	Local  string `json:"local"`
	Remote string `json:"remote"`
	// Path is PathFast or PathKernel.
	Path string `json:"path"`
	// State is the flow's state by name: NONE, OBSERVE, HOLD, DRAIN, ACTIVE.
	State string `json:"state"`
	// Reason says why a connection is on the kernel path: the reason of the
	// last demotion, abort or refusal.
	Reason string `json:"reason,omitempty"`

	FastBytesIn     uint64 `json:"fast_bytes_in"`
	FastBytesOut    uint64 `json:"fast_bytes_out"`
	KernelBytesIn   uint64 `json:"kernel_bytes_in"`
	KernelBytesOut  uint64 `json:"kernel_bytes_out"`
	SegsIn          uint64 `json:"segs_in"`
	SegsOut         uint64 `json:"segs_out"`
	Retransmissions uint64 `json:"retransmissions"`
	// RTTUs is the smoothed round-trip time in microseconds; 0 if unknown.
	RTTUs uint32 `json:"rtt_us"`
}

// Stats are the daemon's counters since its start. Maps by reason hold only
// reasons that occurred. Byte counters are payload and include connections
// that have ended.
type Stats struct {
	Promotions        uint64            `json:"promotions"`
	PromotionsAborted map[string]uint64 `json:"promotions_aborted"`
	PromotionsRefused map[string]uint64 `json:"promotions_refused"`
	Demotions         map[string]uint64 `json:"demotions"`
	// Seized are demotions that the daemon did without the program's help,
	// because it was dead, stopped or did not answer; Stuck are those of them
	// in which the program's shared memory made no sense.
	Seized uint64 `json:"seized"`
	Stuck  uint64 `json:"stuck"`
	// ClosedBehind are sockets closed or shut down by ways that the library
	// does not see; Destroyed those ended by an administrator (ss -K).
	ClosedBehind uint64 `json:"closed_behind"`
	Destroyed    uint64 `json:"destroyed"`
	// Strays are segments that reached a sleeping kernel socket past XDP.
	Strays          uint64            `json:"strays"`
	FastSegsIn      uint64            `json:"fast_segs_in"`
	FastSegsOut     uint64            `json:"fast_segs_out"`
	FastBytesIn     uint64            `json:"fast_bytes_in"`
	FastBytesOut    uint64            `json:"fast_bytes_out"`
	KernelBytesIn   uint64            `json:"kernel_bytes_in"`
	KernelBytesOut  uint64            `json:"kernel_bytes_out"`
	Retransmissions uint64            `json:"retransmissions"`
	Drops           map[string]uint64 `json:"drops"`
	PromotePause    Quantiles         `json:"promote_pause"`
	DemotePause     Quantiles         `json:"demote_pause"`
	RedirectErrors  uint64            `json:"redirect_errors"`
	// Adopted is what this daemon took over from the last one.
	Adopted Adoption `json:"adopted"`
}

// Adoption counts what a daemon took over from one that died or handed over.
type Adoption struct {
	Apps  uint64 `json:"apps"`
	Conns uint64 `json:"conns"`
	// Resumed counts sessions that programs took up again.
	Resumed uint64 `json:"resumed"`
	// Recovered says how the connections were found; Lost, why an
	// application or connection could not be taken over.
	Recovered map[string]uint64 `json:"recovered"`
	Lost      map[string]uint64 `json:"lost"`
}

// Quantiles summarise how long switches kept a connection waiting, in
// microseconds. Count 0 means that nothing was measured.
type Quantiles struct {
	Count uint64  `json:"count"`
	P50Us float64 `json:"p50_us"`
	P99Us float64 `json:"p99_us"`
	MaxUs float64 `json:"max_us"`
}

// SwitchRequest selects connections to promote or demote. Exactly one of the
// three fields is set.
type SwitchRequest struct {
	// Pid selects every connection of a process.
	Pid int `json:"pid,omitempty"`
	// Conn selects one connection by Conn.ID.
	Conn string `json:"conn,omitempty"`
	// All selects every connection of every application.
	All bool `json:"all,omitempty"`
}

// Validate says whether r selects connections in exactly one way.
func (r SwitchRequest) Validate() error {
	ways := 0
	for _, set := range []bool{r.Pid != 0, r.Conn != "", r.All} {
		if set {
			ways++
		}
	}
	if ways != 1 {
		return fmt.Errorf("select connections by exactly one of pid, conn and all (got %d)", ways)
	}
	if r.Pid < 0 {
		return fmt.Errorf("pid %d: not a process id", r.Pid)
	}
	return nil
}

// SwitchResult says what became of a promote or demote request. A promotion
// is asynchronous: a connection counts as switched once its promotion was
// asked for, and etran ss tells how it ended.
type SwitchResult struct {
	Selected int `json:"selected"`
	Switched int `json:"switched"`
	// Refused counts the others by reason, for instance connections that
	// were where they should be already.
	Refused map[string]uint64 `json:"refused,omitempty"`
}

// Error is the answer of a request that failed.
type Error struct {
	// Code is the HTTP status.
	Code int `json:"code"`
	// Message is a sentence for the user.
	Message string `json:"message"`
}

// Error makes *Error an error.
func (e *Error) Error() string { return e.Message }
