// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/etran-go/etran/runtime/adminapi"
)

// direction is which way a command switches connections.
type direction struct {
	verb, participle, short string
	ask                     func(*adminapi.Client, context.Context, adminapi.SwitchRequest) (*adminapi.SwitchResult, error)
}

var (
	promoting = direction{
		"promote", "asked to go to the fast path", "bring connections to the fast path",
		(*adminapi.Client).Promote,
	}
	demoting = direction{
		"demote", "back in the kernel", "give connections back to the kernel",
		(*adminapi.Client).Demote,
	}
)

func newSwitchCommand(runDir *string, d direction) *cobra.Command {
	var request adminapi.SwitchRequest
	cmd := &cobra.Command{
		Use:   d.verb + " {--pid N | --conn ID | --all}",
		Short: d.short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client := adminapi.NewClient(*runDir)
			defer client.Close()
			result, err := d.ask(client, cmd.Context(), request)
			if err != nil {
				return err
			}
			return printSwitch(cmd.OutOrStdout(), d, result)
		},
	}
	cmd.Flags().IntVar(&request.Pid, "pid", 0, "the connections of a process")
	cmd.Flags().StringVar(&request.Conn, "conn", "", "one connection, by the ID that etran ss shows")
	cmd.Flags().BoolVar(&request.All, "all", false, "every connection")
	cmd.MarkFlagsMutuallyExclusive("pid", "conn", "all")
	cmd.MarkFlagsOneRequired("pid", "conn", "all")
	return cmd
}

func printSwitch(w io.Writer, d direction, r *adminapi.SwitchResult) error {
	if r.Selected == 0 {
		return errors.New("no such connection")
	}
	fmt.Fprintf(w, "%d of %d connections %s\n", r.Switched, r.Selected, d.participle)
	reasons := slices.SortedFunc(maps.Keys(r.Refused), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.Refused[b], r.Refused[a]), cmp.Compare(a, b))
	})
	for _, reason := range reasons {
		fmt.Fprintf(w, "  not %d: %s\n", r.Refused[reason], reason)
	}
	return nil
}
