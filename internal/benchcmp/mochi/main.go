// Command mochi is a broker made of mochi-mqtt, for comparison. It listens on its argument and lets everybody in.
package main

import (
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
)

func main() {
	if len(os.Args) != 2 {
		slog.Error("usage: mochi host:port")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		slog.Error("mochi", "err", err)
		os.Exit(1)
	}
}

func run(addr string) error {
	// Limits that the scenarios would meet are lifted, as they are for the other brokers.
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumInflight, c.ReceiveMaximum = 1<<15, 1<<15
	s := mqtt.New(&mqtt.Options{Capabilities: c, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := s.AddHook(new(auth.AllowHook), nil); err != nil {
		return err
	}
	if err := s.AddListener(listeners.NewTCP(listeners.Config{ID: "t", Address: addr})); err != nil {
		return err
	}
	if err := s.Serve(); err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	<-end
	return s.Close()
}
