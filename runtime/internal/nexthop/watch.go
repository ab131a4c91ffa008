// SPDX-License-Identifier: Apache-2.0

package nexthop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Events are the changes that the daemon must act on.
type Events struct {
	// Link: a link changed or is gone (deleted).
	Link func(link netlink.Link, deleted bool)
	// Routes: some route changed, or changes may have been missed.
	Routes func()
}

// After an overrun the kernel's events begin anew; a storm of them must not
// keep the daemon busy.
const (
	watchBuffer  = 1 << 20
	watchRestart = 100 * time.Millisecond
	// Many routes change at once; they are looked at together.
	routeSettle   = 50 * time.Millisecond
	routeInterval = 10 * time.Second
)

// Watch follows the kernel's events until ctx ends.
func (t *Table) Watch(ctx context.Context, log *slog.Logger, events Events) error {
	for _, subscribe := range []func(context.Context, func(error)) (func(), error){
		func(ctx context.Context, failed func(error)) (func(), error) { return t.neighbours(ctx, log, failed) },
		func(ctx context.Context, failed func(error)) (func(), error) { return links(ctx, events, failed) },
		func(ctx context.Context, failed func(error)) (func(), error) { return routes(ctx, events, failed) },
	} {
		failed := func(err error) {
			if ctx.Err() == nil {
				log.Warn("netlink events interrupted", "error", err)
			}
		}
		run, err := subscribe(ctx, failed)
		if err != nil {
			return fmt.Errorf("subscribe to netlink events: %w", err)
		}
		go keep(ctx, failed, run, subscribe)
	}
	return nil
}

// keep runs a subscription and makes a new one when it ends.
func keep(ctx context.Context, failed func(error), run func(), subscribe func(context.Context, func(error)) (func(), error)) {
	for {
		if run != nil {
			run()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchRestart):
		}
		var err error
		if run, err = subscribe(ctx, failed); err != nil {
			failed(err)
			run = nil
		}
	}
}

func (t *Table) neighbours(ctx context.Context, log *slog.Logger, failed func(error)) (func(), error) {
	ch := make(chan netlink.NeighUpdate, 64)
	err := netlink.NeighSubscribeWithOptions(ch, ctx.Done(), netlink.NeighSubscribeOptions{
		ErrorCallback: failed, ReceiveBufferSize: watchBuffer, ReceiveBufferForceSize: true})
	if err != nil {
		return nil, fmt.Errorf("neighbours: %w", err)
	}
	warn := func(err error) {
		if err != nil {
			log.Warn("next hop not updated", "error", err)
		}
	}
	return func() {
		warn(t.refresh())
		for u := range ch {
			switch {
			case u.Family != unix.AF_INET:
			case u.Type == unix.RTM_NEWNEIGH:
				warn(t.setNeighbour(&u.Neigh))
			case u.Type == unix.RTM_DELNEIGH:
				warn(t.neighbourGone(&u.Neigh))
			}
		}
	}, nil
}

func links(ctx context.Context, events Events, failed func(error)) (func(), error) {
	ch := make(chan netlink.LinkUpdate, 64)
	err := netlink.LinkSubscribeWithOptions(ch, ctx.Done(), netlink.LinkSubscribeOptions{
		ErrorCallback: failed, ListExisting: true, ReceiveBufferSize: watchBuffer, ReceiveBufferForceSize: true})
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	return func() {
		for u := range ch {
			if u.IfInfomsg.Family == unix.AF_BRIDGE {
				continue // a port of a bridge came or went, not the device
			}
			events.Link(u.Link, u.Header.Type == unix.RTM_DELLINK)
		}
	}, nil
}

// routes asks for another look at the routes whenever something changed that a
// look-up depends on, and from time to time: an ICMP redirect, or a route that
// goes with a link, makes no event.
func routes(ctx context.Context, events Events, failed func(error)) (func(), error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_NEXTHOP)
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	if err := s.SetReceiveBufferSize(watchBuffer, true); err != nil {
		s.Close()
		return nil, fmt.Errorf("routes: %w", err)
	}
	if err := s.SetReceiveTimeout(&unix.Timeval{Sec: int64(routeInterval.Seconds())}); err != nil {
		s.Close()
		return nil, fmt.Errorf("routes: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	return func() {
		defer stop()
		defer s.Close()
		var pending atomic.Bool
		look := time.AfterFunc(0, func() { pending.Store(false); events.Routes() })
		defer look.Stop()
		for {
			_, _, err := s.Receive()
			if err != nil && !errors.Is(err, unix.EAGAIN) { // EAGAIN: the time is up
				failed(err)
				return
			}
			if !pending.Swap(true) {
				look.Reset(routeSettle)
			}
		}
	}, nil
}
