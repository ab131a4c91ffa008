// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/etran-go/etran/runtime/adminapi"
)

// check compares an output with the expected one, line by line and without
// trailing blanks.
func check(t *testing.T, got *bytes.Buffer, want string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(got.String()) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	if g := strings.Join(lines, "\n"); strings.TrimSpace(g) != strings.TrimSpace(want) {
		t.Errorf("got\n%s\nwant\n%s", g, want)
	}
}

func TestPrintSS(t *testing.T) {
	var out bytes.Buffer
	err := printSS(&out, &adminapi.SS{Conns: []adminapi.Conn{
		{
			ID: "2:0", App: 2, Pid: 20, Comm: "redis-benchmark", Local: "10.77.0.1:40000", Remote: "10.77.0.2:6379",
			Path: adminapi.PathKernel, Reason: "policy", KernelBytesIn: 12,
		},
		{
			ID: "1:7", App: 1, Pid: 10, Comm: "redis-server", Local: "10.77.0.2:6379", Remote: "10.77.0.1:40000",
			Path: adminapi.PathFast, State: "ACTIVE", FastBytesIn: 3 << 20, FastBytesOut: 2048, KernelBytesIn: 1 << 20,
			SegsIn: 5, SegsOut: 6, Retransmissions: 1, RTTUs: 31,
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	check(t, &out, `
ID   PID  COMMAND          LOCAL            REMOTE           PATH    STATE   IN    OUT   FAST   SEGS-IN  SEGS-OUT  RETRANS  RTT   REASON
1:7  10   redis-server     10.77.0.2:6379   10.77.0.1:40000  fast    ACTIVE  4.0M  2.0K  75.0%  5        6         1        31µs  -
2:0  20   redis-benchmark  10.77.0.1:40000  10.77.0.2:6379   kernel  -       12B   0B    0.0%   0        0         0        -     policy`)
}

func TestPrintStats(t *testing.T) {
	var out bytes.Buffer
	err := printStats(&out, &adminapi.Stats{
		Promotions: 3, Demotions: map[string]uint64{"fin": 1, "fork": 2, "close": 2},
		Seized: 2, Stuck: 1, ClosedBehind: 4,
		FastBytesIn: 99, KernelBytesOut: 1, FastSegsIn: 4,
		PromotePause: adminapi.Quantiles{Count: 3, P50Us: 8.5, P99Us: 9, MaxUs: 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, &out, `
promotions                  3
promotions aborted          0
promotions refused          0
demotions                   5
  close                     2
  fork                      2
  fin                       1
seized by the daemon        2, of them stuck 1
closed behind the library   4
destroyed by others         0
pause to promote            p50 8.5 µs, p99 9.0 µs, max 20.0 µs of 3
pause to demote             -
fast path in                99B in 4 segments
fast path out               0B in 0 segments
kernel path in              0B
kernel path out             1B
fast path's share of bytes  99.0%
retransmissions             0
redirect errors             0
strays at sleeping sockets  0
drops                       0`)
}

func TestPrintStatus(t *testing.T) {
	var out bytes.Buffer
	err := printStatus(&out, &adminapi.Status{
		Version: "0.1", Pid: 4, UptimeSeconds: 61.2, Kernel: "6.18",
		Interfaces: []adminapi.Interface{{Name: "wire", Ifindex: 2, Queues: 1, MTU: 1500, Mode: "native", Attached: true, Sharing: "auto"}},
		Apps: []adminapi.App{{ID: 1, Pid: 10, Comm: "redis-server", Reason: "queue taken", Conns: 50},
			{ID: 2, Pid: 11, Comm: "nginx", Rings: adminapi.RingsShared, Conns: 3}},
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, &out, `
etrand 0.1, pid 4, up 1m1s, kernel 6.18

INTERFACE  INDEX  QUEUES  MTU   MODE    ATTACHED  SHARING
wire       2      1       1500  native  yes       auto

APP  PID  UID  COMMAND       CONNECTIONS  RINGS   REASON
1    10   0    redis-server  50           -       queue taken
2    11   0    nginx         3            shared  -`)
}

func TestPrintSwitch(t *testing.T) {
	var out bytes.Buffer
	err := printSwitch(&out, demoting, &adminapi.SwitchResult{Selected: 3, Switched: 1, Refused: map[string]uint64{"in the kernel": 2}})
	if err != nil {
		t.Fatal(err)
	}
	check(t, &out, "1 of 3 connections back in the kernel\n  not 2: in the kernel")
	if err := printSwitch(&out, demoting, &adminapi.SwitchResult{}); err == nil {
		t.Error("nothing selected: no error")
	}
}

func TestByteCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1024: "1.0K", 3 << 29: "1.5G", 1<<64 - 1: "16.0E"} {
		if got := byteCount(n); got != want {
			t.Errorf("byteCount(%d) = %s, want %s", n, got, want)
		}
	}
}
