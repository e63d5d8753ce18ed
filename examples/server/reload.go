package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks/audit"
)

// This file is what is read again while the server runs: files when they change, and everything on
// SIGHUP.

// A file is what is read again when it changes, and on SIGHUP.
type file interface {
	Reload() error
	Watch(ctx context.Context, interval time.Duration, report func(error))
}

// reloads are the files, by what they are.
type reloads map[string]file

// add adds a file. Of several of a kind those behind the first are told apart by name.
func (r reloads) add(kind, name string, f file) {
	if _, ok := r[kind]; ok {
		kind += " " + name
	}
	r[kind] = f
}

// A reloader reads again.
type reloader struct {
	*options
	broker  *dunlin.Broker
	trail   *audit.Trail
	watcher *watcher
}

// run reads the files again where they change, and all of them and the configuration on hangup,
// until ctx ends.
func (r *reloader) run(ctx context.Context, hangup <-chan os.Signal) {
	var watches sync.WaitGroup
	defer watches.Wait()
	for what, f := range r.reloads {
		// waited for above
		watches.Go(func() { f.Watch(ctx, 0, func(err error) { r.report(what, err) }) })
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			for _, f := range r.files {
				f.reopen()
			}
			for what, f := range r.reloads {
				r.report(what, f.Reload())
			}
			r.configuration()
		}
	}
}

func (r *reloader) report(what string, err error) {
	if r.trail != nil {
		r.trail.Reload(what, err)
	}
	log := r.cfg.Logger
	if err != nil {
		log.Error("not reloaded, what was in force stays", "what", what, "err", err)
		return
	}
	log.Info("reloaded", "what", what)
}

// running can be changed while the broker runs, unless the function says no. So can what fieldOf
// names, as far as Broker.Reconfigure takes it. Everything else needs a restart.
var running = map[string]func(r *reloader, o *options) bool{
	"log-level": func(r *reloader, o *options) bool {
		r.level.Set(o.level.Level())
		return true
	},
	"connection-messages": func(r *reloader, o *options) bool {
		r.watcher.connection.Store(o.connection)
		return true
	},
	// without it the broker does not tell what would be printed
	"v": func(r *reloader, o *options) bool {
		r.watcher.packets.Store(o.packets && r.packets)
		return r.packets
	},
	"max-payload": func(r *reloader, o *options) bool {
		r.maxPayload.Store(int64(o.payload))
		return r.cfg.Interceptor != nil
	},
}

// configuration reads the config file again, applies what can be applied, and says what needs a
// restart.
func (r *reloader) configuration() {
	if r.config == "" {
		return
	}
	log := r.cfg.Logger
	o, err := parse(r.args)
	if err != nil {
		log.Error("the configuration was not read again, what was in force stays", "err", err)
		return
	}
	kept, err := r.broker.Reconfigure(o.cfg)
	if err != nil {
		log.Error("the configuration was not applied, what was in force stays", "err", err)
		return
	}
	r.changeLinks(o)
	was, is := r.settings, o.settings
	for _, name := range changed(was, is) {
		apply, field := running[name], fieldOf(name)
		if apply != nil && apply(r, o) || field != "" && !slices.Contains(kept, field) {
			log.Info("changed", "what", name, "to", is[name])
			was[name] = is[name]
			continue
		}
		about := []any{"what", name}
		if !strings.HasPrefix(name, "listener ") { // whose words are not for people
			about = append(about, "from", was[name], "to", is[name])
		}
		log.Warn("changed, and needs a restart", about...)
	}
}

// fieldOf returns the field of dunlin.Config that a flag sets, "" if it sets none.
func fieldOf(flag string) string {
	switch flag {
	case "rate-exceeded":
		return "OverRate"
	case "max-qos":
		return "MaxQoS"
	case "versions":
		return "Versions"
	}
	o := new(options)
	f := o.flags().Lookup(flag)
	if f == nil {
		return ""
	}
	v, cfg := reflect.ValueOf(f.Value), reflect.ValueOf(&o.cfg).Elem()
	for i := range cfg.NumField() {
		if v.Kind() == reflect.Pointer && v.Pointer() == cfg.Field(i).Addr().Pointer() {
			return cfg.Type().Field(i).Name
		}
	}
	return ""
}

// settings are flags and listeners in words, by name: those of listeners by where they stand.
type settings map[string]string

// settled returns the settings of options that are finished.
func (o *options) settled(fs *flag.FlagSet) settings {
	s := settings{"clientid_prefixes": o.clientPrefix}
	fs.VisitAll(func(f *flag.Flag) { s[f.Name] = f.Value.String() })
	for _, x := range o.more {
		s["listener at "+x.at+" "+x.addr] = x.words()
	}
	return s
}

// words are everything that is set for a listener of a mosquitto.conf.
func (x *listening) words() string {
	e, files := *x.entry, x.files
	tls := ""
	if files.Base != nil {
		tls = fmt.Sprint(files.Base.MinVersion, files.Base.CipherSuites)
	}
	files.Base = nil
	qos := 2
	if e.limits.MaxQoS != nil {
		qos = int(*e.limits.MaxQoS)
	}
	e.limits.MaxQoS = nil
	connections := 0
	if x.as != nil {
		connections = x.as.MaxConnections
	}
	return fmt.Sprint(x.network, x.name(), files, tls, x.proxy, x.httpDir, x.web, connections,
		e.security, e.identity != nil,
		e.usernameAsID, e.versions, e.mount, qos, e.limits)
}

// changed returns the names of settings that differ, or that only one has.
func changed(a, b settings) (names []string) {
	for name, v := range a {
		if w, ok := b[name]; !ok || v != w {
			names = append(names, name)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
