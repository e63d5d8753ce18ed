package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	_ "net/http/pprof" // served only with -pprof
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
)

// run is the broker until a signal ends it.
func run(args []string, out io.Writer) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, usage)
		fs := new(options).flags()
		fs.SetOutput(out)
		fs.PrintDefaults()
	}
	if err != nil {
		return err
	}
	o.args = args
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return o.serve(ctx)
}

// serve is the broker until ctx ends.
func (o *options) serve(ctx context.Context) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	trail, end, err := o.openTrail(&o.cfg)
	if err != nil {
		return err
	}
	defer end()
	watcher := o.logging.watch(o.cfg.Logger)
	defer watcher.end()
	o.packet = watcher.packet
	o.cfg.Observer = hooks.Join(o.cfg.Observer, watcher.observer(), o.desk.observer(),
		o.comings.observer())
	b, err := o.open()
	if err != nil {
		return err
	}
	defer b.Close() // it closes the store, too
	defer o.endLinks()
	errs, err := o.start(b)
	if err != nil {
		return err
	}
	r := &reloader{options: o, broker: b, trail: trail, watcher: watcher}
	watching.Go(func() { r.run(ctx, hangup) }) // ends with ctx; waited for above
	endProfiles, err := o.profile()
	if err != nil {
		return err
	}
	defer endProfiles()
	endDesk, err := o.desk.serve(b, o.cfg.Logger, &o.level)
	if err != nil {
		return err
	}
	defer endDesk()
	watching.Go(func() { o.comings.run(ctx, b, o.cfg.Logger) }) // ends with ctx; waited for above
	manager := managed(os.Getenv)
	defer manager.stopping()
	// ends with ctx; waited for above
	watching.Go(func() { manager.run(ctx, func() { b.Stats() }, o.cfg.Logger) })
	select {
	case err := <-errs:
		return err
	case <-ctx.Done():
	}
	manager.stopping()
	o.shutDown(b)
	return nil
}

// open makes the broker, with its store and its bridges.
func (o *options) open() (*dunlin.Broker, error) {
	st, err := o.persistence.open(o.cfg.Logger)
	if err != nil {
		return nil, err
	}
	o.cfg.Store = st
	b, err := (*dunlin.Broker)(nil), o.install()
	if err == nil {
		b, err = dunlin.New(o.cfg)
	}
	if err != nil && st != nil {
		st.Close()
	}
	return b, err
}

// shutDown ends the bridges, then the broker.
func (o *options) shutDown(b *dunlin.Broker) {
	o.cfg.Logger.Info("shutting down")
	o.endLinks()
	patient, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := b.Shutdown(patient); err != nil {
		o.cfg.Logger.Warn("clients were cut off", "err", err)
	}
}

// profileConns is how many connections -pprof has at most.
const profileConns = 16

// profile serves -pprof.
func (o *options) profile() (end func(), err error) {
	if o.pprof == "" {
		return func() {}, nil
	}
	profiles, err := net.Listen("tcp", o.pprof)
	if err != nil {
		return nil, fmt.Errorf("-pprof: %w", err)
	}
	// the handler is http.DefaultServeMux
	g := newEntrance(profiles, profileConns, profileConns)
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute,
		IdleTimeout: time.Minute, ConnState: g.state}
	go srv.Serve(g) // ends with srv
	return func() { srv.Close() }, nil
}

// start bans, opens the listeners and serves them. What a listener ends with comes from errs.
func (o *options) start(b *dunlin.Broker) (errs chan error, err error) {
	if err := o.limits.ban(b); err != nil {
		return nil, err
	}
	doors := &opener{transport: &o.transport, local: o.localOnly, log: o.cfg.Logger,
		admit: b.Admits}
	if err := o.startLinks(b); err != nil { // whose queues are there before any client is
		return nil, err
	}
	listeners, err := doors.open()
	if err != nil {
		return nil, err
	}
	about := []any{"version", dunlin.Version}
	if len(o.more) == 0 { // those of a mosquitto.conf say so one by one
		about = append(about, "admits", o.access.admits(o.identity))
	}
	o.cfg.Logger.Info("started", about...)
	errs = make(chan error, len(listeners))
	for _, l := range listeners {
		o.announce(l)
		go func() { errs <- b.ServeListener(l.Listener, l.as) }() // ends with b
		if o.listening != nil {
			o.listening(l.Addr())
		}
	}
	return errs, nil
}

// announce says what is listened on.
func (o *options) announce(l opened) {
	about := []any{"addr", l.Addr().String(), "protocol", l.name()}
	if l.web != nil {
		about = append(about, "path", cmp.Or(l.web.path, "any"))
	}
	admits := o.access.admits(o.identity)
	if l.as != nil {
		admits = l.entry.admits()
	}
	if l.at != "" {
		about = append(about, "at", l.at)
	}
	o.cfg.Logger.Info("listening", append(about, "admits", admits)...)
	if admits == nobody {
		o.cfg.Logger.Warn("nobody can come in: name a password file, or allow anonymous clients",
			"addr", l.Addr().String())
	}
}
