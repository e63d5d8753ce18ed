// Command mochi is a broker made of mochi-mqtt, for comparison. It listens on its argument and lets
// everybody in. With -store it keeps sessions and messages in the folder -data: bolt is its hook as
// it is by default, which syncs every transaction; badger is its hook with SyncWrites, without
// which badger syncs nothing, and else as it is by default.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	badgerdb "github.com/dgraph-io/badger/v4"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/hooks/storage/badger"
	"github.com/mochi-mqtt/server/v2/hooks/storage/bolt"
	"github.com/mochi-mqtt/server/v2/listeners"
)

func main() {
	kind := flag.String("store", "", "bolt, badger or nothing")
	data := flag.String("data", "", "`folder` of the store")
	flag.Parse()
	if flag.NArg() != 1 {
		slog.Error("usage: mochi [-store bolt|badger -data folder] host:port")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *kind, *data); err != nil {
		slog.Error("mochi", "err", err)
		os.Exit(1)
	}
}

func run(addr, kind, data string) error {
	// Limits that the scenarios would meet are lifted, as they are for the other brokers.
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumInflight, c.ReceiveMaximum = 1<<15, 1<<15
	s := mqtt.New(&mqtt.Options{Capabilities: c,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := errors.Join(s.AddHook(new(auth.AllowHook), nil),
		addStore(s, kind, data)); err != nil {
		return err
	}
	if err := s.AddListener(listeners.NewTCP(listeners.Config{ID: "t",
		Address: addr})); err != nil {
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

// addStore has s keep in the folder data what its hooks keep.
func addStore(s *mqtt.Server, kind, data string) error {
	switch kind {
	case "":
		return nil
	case "bolt":
		return s.AddHook(new(bolt.Hook), &bolt.Options{Path: filepath.Join(data, "bolt.db")})
	case "badger":
		o := badgerdb.DefaultOptions(data).WithSyncWrites(true)
		return s.AddHook(new(badger.Hook), &badger.Options{Path: data, Options: &o})
	}
	return fmt.Errorf("-store %q is not bolt or badger", kind)
}
