// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etran-go/etran/runtime/adminapi"
)

// newShowCommand makes a command that asks the daemon for something and
// prints it as text or, with --json, as the daemon sent it.
func newShowCommand[T any](use, short string, runDir *string,
	ask func(*adminapi.Client, context.Context) (*T, error), print func(io.Writer, *T) error,
) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   use + " [--json]",
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client := adminapi.NewClient(*runDir)
			defer client.Close()
			answer, err := ask(client, cmd.Context())
			if err != nil {
				return err
			}
			if !asJSON {
				return print(cmd.OutOrStdout(), answer)
			}
			encoder := json.NewEncoder(cmd.OutOrStdout())
			encoder.SetIndent("", "  ")
			return encoder.Encode(answer)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newSSCommand(runDir *string) *cobra.Command {
	return newShowCommand("ss", "show every connection", runDir, (*adminapi.Client).SS, printSS)
}

func newStatsCommand(runDir *string) *cobra.Command {
	return newShowCommand("stats", "show the daemon's counters", runDir, (*adminapi.Client).Stats, printStats)
}

func newStatusCommand(runDir *string) *cobra.Command {
	return newShowCommand("status", "show the daemon, its interfaces and applications", runDir,
		(*adminapi.Client).Status, printStatus)
}

// newTable makes a writer that aligns tab-separated cells.
func newTable(w io.Writer) *tabwriter.Writer {
	return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
}

func printSS(w io.Writer, ss *adminapi.SS) error {
	conns := slices.Clone(ss.Conns)
	slices.SortStableFunc(conns, func(a, b adminapi.Conn) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Local, b.Local), cmp.Compare(a.Remote, b.Remote))
	})
	t := newTable(w)
	fmt.Fprintln(t, "ID\tPID\tCOMMAND\tLOCAL\tREMOTE\tPATH\tSTATE\tIN\tOUT\tFAST\tSEGS-IN\tSEGS-OUT\tRETRANS\tRTT\tREASON")
	for _, c := range conns {
		in, out := c.FastBytesIn+c.KernelBytesIn, c.FastBytesOut+c.KernelBytesOut
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n",
			c.ID, c.Pid, orDash(c.Comm), c.Local, c.Remote, c.Path, orDash(c.State),
			byteCount(in), byteCount(out), share(c.FastBytesIn+c.FastBytesOut, in+out),
			c.SegsIn, c.SegsOut, c.Retransmissions, rtt(c.RTTUs), orDash(c.Reason))
	}
	return t.Flush()
}

func printStats(w io.Writer, s *adminapi.Stats) error {
	t := newTable(w)
	fast, kernel := s.FastBytesIn+s.FastBytesOut, s.KernelBytesIn+s.KernelBytesOut
	fmt.Fprintf(t, "promotions\t%d\n", s.Promotions)
	printReasons(t, "promotions aborted", s.PromotionsAborted)
	printReasons(t, "promotions refused", s.PromotionsRefused)
	printReasons(t, "demotions", s.Demotions)
	fmt.Fprintf(t, "seized by the daemon\t%d, of them stuck %d\n", s.Seized, s.Stuck)
	fmt.Fprintf(t, "closed behind the library\t%d\n", s.ClosedBehind)
	fmt.Fprintf(t, "destroyed by others\t%d\n", s.Destroyed)
	printPause(t, "pause to promote", s.PromotePause)
	printPause(t, "pause to demote", s.DemotePause)
	fmt.Fprintf(t, "fast path in\t%s in %d segments\n", byteCount(s.FastBytesIn), s.FastSegsIn)
	fmt.Fprintf(t, "fast path out\t%s in %d segments\n", byteCount(s.FastBytesOut), s.FastSegsOut)
	fmt.Fprintf(t, "kernel path in\t%s\n", byteCount(s.KernelBytesIn))
	fmt.Fprintf(t, "kernel path out\t%s\n", byteCount(s.KernelBytesOut))
	fmt.Fprintf(t, "fast path's share of bytes\t%s\n", share(fast, fast+kernel))
	fmt.Fprintf(t, "retransmissions\t%d\n", s.Retransmissions)
	fmt.Fprintf(t, "redirect errors\t%d\n", s.RedirectErrors)
	fmt.Fprintf(t, "strays at sleeping sockets\t%d\n", s.Strays)
	printReasons(t, "drops", s.Drops)
	return t.Flush()
}

// printReasons prints a sum and below it its parts, the greatest first.
func printReasons(w io.Writer, what string, reasons map[string]uint64) {
	var sum uint64
	for _, n := range reasons {
		sum += n
	}
	fmt.Fprintf(w, "%s\t%d\n", what, sum)
	names := slices.SortedFunc(maps.Keys(reasons), func(a, b string) int {
		return cmp.Or(cmp.Compare(reasons[b], reasons[a]), cmp.Compare(a, b))
	})
	for _, name := range names {
		fmt.Fprintf(w, "  %s\t%d\n", name, reasons[name])
	}
}

func printPause(w io.Writer, what string, q adminapi.Quantiles) {
	if q.Count == 0 {
		fmt.Fprintf(w, "%s\t-\n", what)
		return
	}
	fmt.Fprintf(w, "%s\tp50 %.1f µs, p99 %.1f µs, max %.1f µs of %d\n", what, q.P50Us, q.P99Us, q.MaxUs, q.Count)
}

func printStatus(w io.Writer, s *adminapi.Status) error {
	up := time.Duration(s.UptimeSeconds * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(w, "etrand %s, pid %d, up %v, kernel %s\n", s.Version, s.Pid, up, s.Kernel)
	t := newTable(w)
	fmt.Fprintln(t, "\nINTERFACE\tINDEX\tQUEUES\tMTU\tMODE\tATTACHED\tSHARING")
	for _, i := range s.Interfaces {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\t%s\t%s\n", i.Name, i.Ifindex, i.Queues, i.MTU, orDash(i.Mode), yesNo(i.Attached), orDash(i.Sharing))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	t = newTable(w)
	fmt.Fprintln(t, "\nAPP\tPID\tUID\tCOMMAND\tCONNECTIONS\tRINGS\tREASON")
	for _, a := range s.Apps {
		fmt.Fprintf(t, "%d\t%d\t%d\t%s\t%d\t%s\t%s\n", a.ID, a.Pid, a.Uid, orDash(a.Comm), a.Conns, orDash(a.Rings), orDash(a.Reason))
	}
	return t.Flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// orDash keeps an empty cell visible, and the columns apart for awk.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// rtt formats a round-trip time, of which 0 means that it isn't known.
func rtt(us uint32) string {
	if us == 0 {
		return "-"
	}
	return strconv.FormatUint(uint64(us), 10) + "µs"
}

// share formats a part of a whole in percent.
func share(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return strconv.FormatFloat(100*float64(part)/float64(whole), 'f', 1, 64) + "%"
}

// byteCount formats a number of bytes with three or four digits.
func byteCount(n uint64) string {
	const step = 1024
	if n < step {
		return strconv.FormatUint(n, 10) + "B"
	}
	value, unit := float64(n)/step, 0
	const units = "KMGTPE"
	for value >= step && unit < len(units)-1 {
		value /= step
		unit++
	}
	return strconv.FormatFloat(value, 'f', 1, 64) + units[unit:unit+1]
}
