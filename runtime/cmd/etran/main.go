// SPDX-License-Identifier: Apache-2.0

// Command etran runs programs on the fast path and shows what etrand does.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/etran-go/etran/runtime/adminapi"
)

// exitError is an error that decides the exit status.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "etran: %v\n", err)
	var exit *exitError
	if errors.As(err, &exit) {
		os.Exit(exit.status)
	}
	os.Exit(1)
}

// newCommand builds the command tree.
func newCommand() *cobra.Command {
	var runDir string
	root := &cobra.Command{
		Use:           "etran",
		Short:         "run programs on eTran's fast path and see what it does",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	def := os.Getenv(envRunDir)
	if def == "" {
		def = adminapi.DefaultRunDir
	}
	root.PersistentFlags().StringVar(&runDir, "run-dir", def,
		"run directory of the daemon; the default is $"+envRunDir+" or "+adminapi.DefaultRunDir)
	root.AddCommand(
		newRunCommand(&runDir),
		newSSCommand(&runDir), newStatsCommand(&runDir), newStatusCommand(&runDir),
		newSwitchCommand(&runDir, promoting), newSwitchCommand(&runDir, demoting),
	)
	return root
}
