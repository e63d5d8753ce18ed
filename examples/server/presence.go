package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/presence"
)

// This file is -presence.

// comings is who tells of clients that come and go.
type comings struct {
	how string             // of the flag
	of  *presence.Presence // nil: nobody
}

func (c *comings) flags(fs *flag.FlagSet) {
	fs.StringVar(&c.how, "presence", "off", "publish who connects and disconnects, as JSON: off; "+
		"events, at $SYS/broker/clients/ID/connected and /disconnected; or retained, at "+
		"$SYS/broker/clients/ID")
}

// open checks the flag.
func (c *comings) open() error {
	c.of = nil
	switch c.how {
	case "off":
	case "events":
		c.of = presence.New(presence.Options{})
	case "retained":
		c.of = presence.New(presence.Options{Retain: true})
	default:
		return fmt.Errorf("-presence %q is not off, events or retained", c.how)
	}
	return nil
}

// observer learns of clients; nil where nothing is published.
func (c *comings) observer() *hooks.Observer {
	if c.of == nil {
		return nil
	}
	return c.of.Observer()
}

// run publishes until ctx ends.
func (c *comings) run(ctx context.Context, b *dunlin.Broker, log *slog.Logger) {
	if c.of == nil {
		return
	}
	c.of.Run(ctx, b)
	if n := c.of.Lost(); n > 0 {
		log.Warn("messages of -presence were lost", "messages", n)
	}
}
