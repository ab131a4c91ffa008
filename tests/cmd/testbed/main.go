// SPDX-License-Identifier: Apache-2.0

// Command testbed makes two hosts, A and B, out of network namespaces with an
// etrand in each, runs programs on them and removes them. See package
// tests/internal/testbed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/etran-go/etran/tests/internal/testbed"
	"github.com/etran-go/etran/tests/middlebox"
)

func main() {
	if err := newCommand().Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "testbed: %v\n", err)
		os.Exit(1)
	}
}

// newCommand builds the command tree.
func newCommand() *cobra.Command {
	opts := testbed.Options{Log: os.Stderr}
	root := &cobra.Command{
		Use:   "testbed",
		Short: "two hosts in network namespaces, with an etrand in each",
		Long: `Two hosts, A and B, in network namespaces, joined by two wires:

  interface wire   A 10.77.0.1/24, B 10.77.0.2/24   with an etrand at each end
  interface plain  A 10.78.0.1/24, B 10.78.0.2/24   which never sees XDP

The wire can lead through a middlebox that drops, duplicates, corrupts and
reorders segments: see the flags of up.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	name := os.Getenv("ETRAN_TESTBED")
	if name == "" {
		name = testbed.DefaultName
	}
	root.PersistentFlags().StringVar(&opts.Name, "name", name,
		"which testbed; the default is $ETRAN_TESTBED or "+testbed.DefaultName)
	root.AddCommand(upCommand(&opts), downCommand(&opts), runCommand(&opts), etranCommand(&opts))
	return root
}

func upCommand(opts *testbed.Options) *cobra.Command {
	var faults middlebox.Faults
	cmd := &cobra.Command{
		Use:   "up",
		Short: "make the testbed, after removing one that exists",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := setBuildDir(opts); err != nil {
				return err
			}
			tb, err := testbed.New(cmd.Context(), *opts)
			if err != nil {
				return err
			}
			if opts.Middlebox {
				return stayWith(tb, faults)
			}
			return tb.Detach()
		},
	}
	cmd.Flags().IntVar(&opts.MTU, "mtu", 1500, "MTU of both wires")
	cmd.Flags().IntVar(&opts.Queues, "queues", 1, "receive and transmit queues of each interface")
	cmd.Flags().StringArrayVar(&opts.DaemonArgs, "daemon-arg", nil, "further argument for both daemons (repeatable)")
	cmd.Flags().BoolVar(&opts.NoDaemon, "no-daemon", false, "start no etrand")
	faultFlags(cmd, opts, &faults)
	return cmd
}

func faultFlags(cmd *cobra.Command, opts *testbed.Options, f *middlebox.Faults) {
	flags := cmd.Flags()
	flags.BoolVar(&opts.Middlebox, "middlebox", false,
		"let the wire lead through a middlebox, with the faults below; the command then stays until it is interrupted")
	flags.Uint32Var(&f.Drop, "drop", 0, "segments dropped, per million")
	flags.Uint32Var(&f.Duplicate, "duplicate", 0, "segments duplicated, per million")
	flags.Uint32Var(&f.Corrupt, "corrupt", 0, "segments with a changed octet, per million")
	flags.Uint32Var(&f.Reorder, "reorder", 0, "segments delayed, per million")
	flags.DurationVar(&f.ReorderDelay, "reorder-delay", time.Millisecond, "by so much")
	flags.DurationVar(&f.Delay, "delay", 0, "delay of every segment")
	flags.Uint64Var(&f.Rate, "rate", 0, "octets per second; 0 = no bound")
	flags.Uint64Var(&f.Limit, "limit", 0, "not more than so many of each fault; 0 = no bound")
	flags.Uint64Var(&f.Seed, "seed", 1, "decides which segments suffer")
}

// stayWith keeps the middlebox going until a signal takes the testbed down.
func stayWith(tb *testbed.Testbed, f middlebox.Faults) error {
	if err := tb.SetFaults(f); err != nil {
		return errors.Join(err, tb.Close())
	}
	fmt.Fprintln(os.Stderr, "testbed: up, with a middlebox that lasts as long as this command")
	select {}
}

func downCommand(opts *testbed.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "end everything that runs on the hosts and remove the testbed",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return testbed.Down(ctx, opts.Name, os.Stderr)
		},
	}
}

func runCommand(opts *testbed.Options) *cobra.Command {
	var c testbed.Command
	cmd := &cobra.Command{
		Use:   "run HOST [--etran] [--cpu N] [--uid N] [--env K=V] -- command…",
		Short: "run a program on a host, plainly or under libetran.so",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			c.Args = args[1:]
			return execOn(opts, args[0], c)
		},
	}
	cmd.Flags().BoolVar(&c.Etran, "etran", false, "run it under libetran.so")
	cmd.Flags().IntSliceVar(&c.CPUs, "cpu", nil, "pin it to this CPU (or several, separated by commas)")
	cmd.Flags().Uint32Var(&c.UID, "uid", 0, "run it as this user and group")
	cmd.Flags().StringArrayVar(&c.Env, "env", nil, "set an environment variable, K=V (repeatable)")
	return cmd
}

func etranCommand(opts *testbed.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "etran HOST arguments…",
		Short: "run the etran tool against a host's daemon",
		Args:  cobra.MinimumNArgs(1),
		// Every flag after the host is the etran tool's.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "-h" || args[0] == "--help" {
				return cmd.Help()
			}
			if err := setBuildDir(opts); err != nil {
				return err
			}
			tool := filepath.Join(opts.BuildDir, "etran")
			return execOn(opts, args[0], testbed.Command{Args: append([]string{tool}, args[1:]...)})
		},
	}
}

// execOn replaces this process by a program on a host.
func execOn(opts *testbed.Options, host string, c testbed.Command) error {
	if err := setBuildDir(opts); err != nil {
		return err
	}
	tb, err := testbed.Open(*opts)
	if err != nil {
		return err
	}
	h, err := tb.Host(host)
	if err != nil {
		return err
	}
	return h.Exec(c)
}

// setBuildDir takes the products from the directory that this program is in.
func setBuildDir(opts *testbed.Options) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the build directory: %w", err)
	}
	opts.BuildDir = filepath.Dir(self)
	return nil
}
