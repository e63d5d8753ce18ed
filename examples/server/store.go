package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/bbolt"
	"github.com/dunlin-mqtt/dunlin/store/segment"
)

// persistence is the flags that say what outlives the broker.
type persistence struct {
	data, kind, durable string
	durability          store.Durability
}

func (p *persistence) flags(f *flag.FlagSet) {
	f.StringVar(&p.data, "data", "",
		"`directory` that keeps sessions, queued and retained messages (default: they end with "+
			"the broker)")
	f.StringVar(&p.kind, "store", "segment", "what kind of store is in -data: segment or bbolt")
	f.StringVar(&p.durable, "durability", "synced",
		"what an acknowledged message survives: synced (loss of power), buffered (end of the "+
			"process) or none")
}

// finish checks the flags.
func (p *persistence) finish() error {
	if p.kind != "segment" && p.kind != "bbolt" {
		return fmt.Errorf("-store %q is not segment or bbolt", p.kind)
	}
	for _, d := range []store.Durability{
		store.DurabilitySynced, store.DurabilityBuffered, store.DurabilityNone,
	} {
		if d.String() == p.durable {
			p.durability = d
			return nil
		}
	}
	return fmt.Errorf("-durability %q is not synced, buffered or none", p.durable)
}

// bboltFile is the file in -data with -store bbolt.
const bboltFile = "dunlin.db"

// open opens the store, nil if there is to be none. A directory that holds one of the other kind is
// left alone.
func (p *persistence) open(logger *slog.Logger) (store.Store, error) {
	if p.data == "" {
		return nil, nil
	}
	if p.kind == "segment" {
		s, err := segment.Open(p.data, segment.Options{Durability: p.durability, Logger: logger})
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	if _, err := os.Stat(filepath.Join(p.data, "manifest")); err == nil {
		return nil, fmt.Errorf("-data %s holds a store of the kind segment, not bbolt", p.data)
	}
	if err := os.MkdirAll(p.data, 0o700); err != nil {
		return nil, fmt.Errorf("-data is the folder of the store: %w", err)
	}
	s, err := bbolt.Open(filepath.Join(p.data, bboltFile), bbolt.Options{Durability: p.durability})
	if err != nil {
		return nil, err
	}
	return s, nil
}
