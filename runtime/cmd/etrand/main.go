// SPDX-License-Identifier: Apache-2.0

// Command etrand is eTran's daemon: it attaches the data path to network
// interfaces, serves the programs that run under libetran.so, and moves their
// TCP connections between the kernel and the fast path.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/config"
	"github.com/etran-go/etran/runtime/internal/keeper"
	"github.com/etran-go/etran/runtime/internal/loglimit"
)

// version is set by the linker.
var version = "development"

func main() {
	if os.Args[0] == keeper.Name {
		if err := keeper.Serve(); err != nil {
			os.Exit(1)
		}
		return
	}
	c, err := config.Parse(os.Args[1:], os.Stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(&c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "etrand:", err)
		os.Exit(1)
	}
}

func run(c *config.Config) error {
	out, err := openLog(c.LogFile)
	if err != nil {
		return err
	}
	log := slog.New(loglimit.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelInfo})))
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	d, err := start(ctx, c, log)
	if err != nil {
		log.Error("not started", "error", err)
		return err
	}
	log.Info("ready", "version", version, "run_dir", c.RunDir)
	handOver := make(chan os.Signal, 1)
	signal.Notify(handOver, unix.SIGUSR2)
	select {
	case <-handOver:
		// As if killed: all that the next daemon needs is safe already.
		log.Info("leaving the connections as they are, for another etrand")
		return nil
	case <-ctx.Done():
	}
	// A second signal ends the daemon at once.
	stop()
	log.Info("stopping: all connections go back to the kernel")
	d.stop()
	log.Info("stopped")
	return nil
}

func openLog(name string) (io.Writer, error) {
	if name == "" {
		return os.Stderr, nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log file: %w", err)
	}
	return f, nil
}
