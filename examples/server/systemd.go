package main

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"
)

// This file tells systemd that the server is ready, works, and stops: sd_notify(3), in a unit with
// Type=notify and WatchdogSec. Without systemd it does nothing.

// A manager is systemd, or nothing.
type manager struct {
	socket   string        // empty: nobody wants to know
	watchdog time.Duration // how often it wants to hear; 0: never
	ended    sync.Once
}

// managed reads what systemd has put into the environment.
func managed(getenv func(string) string) *manager {
	m := &manager{socket: getenv("NOTIFY_SOCKET")}
	if usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 {
		m.watchdog = time.Duration(usec) * time.Microsecond
	}
	return m
}

// run says that the server is ready, and from then on that it works, each time that works has
// returned, until ctx ends. (That the disk is full is no reason to be restarted.)
func (m *manager) run(ctx context.Context, works func(), log *slog.Logger) {
	if err := m.tell("READY=1"); err != nil {
		log.Warn("systemd was not told that the server is ready", "err", err)
	}
	if m.socket == "" || m.watchdog == 0 {
		return
	}
	t := time.NewTicker(m.watchdog / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		works()
		if err := m.tell("WATCHDOG=1"); err != nil {
			log.Warn("the watchdog of systemd was not told that the server works", "err", err)
		}
	}
}

// stopping says that the server ends, once.
func (m *manager) stopping() { m.ended.Do(func() { _ = m.tell("STOPPING=1") }) }

func (m *manager) tell(what string) error {
	if m.socket == "" {
		return nil
	}
	name := m.socket
	if name[0] == '@' { // in the abstract namespace
		name = "\x00" + name[1:]
	}
	c, err := net.Dial("unixgram", name)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(what))
	return err
}
