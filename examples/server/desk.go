package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/admin"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/crypt"
	"github.com/dunlin-mqtt/dunlin/hooks/trace"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is -http: the desk of operators.

// A desk is the flags, and what they open.
type desk struct {
	addr, users string
	most        int // connections
	traceDir    string
	act, hosts  list
	file        *auth.PasswordFile
	events      *admin.Events
	listening   func(net.Addr) // if not nil, is told the address
}

func (d *desk) flags(fs *flag.FlagSet) {
	fs.StringVar(&d.addr, "http", "", "`address` of the dashboard, its API, /metrics, /livez and "+
		"/readyz; one without a host, as :8080, is on this machine only (default none)")
	fs.StringVar(&d.users, "http-users", "", "`file` of users of -http, as the command passwd "+
		"makes it; all of them may look")
	fs.Var(&d.act, "http-act", "`user` of -http who may also act, repeatable; * for all")
	fs.Var(&d.hosts, "http-host", "`name` by which browsers reach -http, repeatable (default only "+
		"addresses, and localhost)")
	fs.IntVar(&d.most, "http-connections", 256, "how many connections -http has at most; one "+
		"address has at most a quarter of them")
	fs.StringVar(&d.traceDir, "http-traces", "", "`folder` for traces that users of -http start "+
		"(default none: there are no traces)")
}

// open checks the flags and opens the file.
func (d *desk) open(r reloads) (err error) {
	d.file, d.events = nil, nil
	switch {
	case d.addr == "" && d.users == "" && d.traceDir == "" && len(d.act)+len(d.hosts) == 0:
		return nil
	case d.addr == "":
		return errors.New("-http-users, -http-act, -http-host and -http-traces need -http")
	case d.users == "":
		return errors.New("-http needs -http-users: a file of those who may look, as the command " +
			"passwd makes it")
	}
	if d.most < 4 {
		return fmt.Errorf("-http-connections: expected at least 4, got %d", d.most)
	}
	if d.addr, err = onLoopback(d.addr); err != nil {
		return fmt.Errorf("-http: %w", err)
	}
	if d.file, err = auth.Open(d.users, crypt.Bcrypt, crypt.Argon2id); err != nil {
		return fmt.Errorf("-http-users: %w", err)
	}
	r.add("users of -http", d.users, d.file)
	d.events = admin.NewEvents()
	return nil
}

// serverOf returns what serves h on l, to bounded numbers of clients that send and read slowly.
// Streams have deadlines of their own.
func serverOf(h http.Handler, l net.Listener, most int, log *slog.Logger) (*http.Server,
	net.Listener) {
	g := newEntrance(l, most, most/4)
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute,
		WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ConnState: g.state, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}, g
}

// onLoopback completes an address that has no host.
func onLoopback(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// observer learns of security events; nil without -http.
func (d *desk) observer() *hooks.Observer {
	if d.events == nil {
		return nil
	}
	return d.events.Observer()
}

// role decides a name and a password.
func (d *desk) role(ctx context.Context, user, password string) (admin.Role, error) {
	r := hooks.ConnectRequest{Client: new(hooks.Client), Grant: new(hooks.Grant),
		Connect: &packets.Connect{Username: user, HasUsername: true, Password: []byte(password),
			HasPassword: true}}
	if err := d.file.Authenticate(ctx, &r); err != nil {
		return admin.RoleNone, err
	}
	if slices.Contains(d.act, user) || slices.Contains(d.act, "*") {
		return admin.RoleAct, nil
	}
	return admin.RoleRead, nil
}

// serve serves -http until end is called.
func (d *desk) serve(b *dunlin.Broker, log *slog.Logger, level *slog.LevelVar) (end func(),
	err error) {
	if d.addr == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", d.addr)
	if err != nil {
		return nil, fmt.Errorf("-http: %w", err)
	}
	o := admin.Options{
		Authorize: admin.Basic(d.role), Hosts: d.hosts, OpenProbes: true, Logger: log,
		LogLevel: level, Events: map[string]*admin.Events{"main": d.events},
	}
	endTraces := func() {}
	if d.traceDir != "" {
		r := trace.New(b, trace.Options{Dir: d.traceDir})
		o.Traces, endTraces = map[string]*trace.Recorder{"main": r}, r.Close
	}
	h := admin.New(map[string]*dunlin.Broker{"main": b}, o)
	srv, l := serverOf(h, l, d.most, log)
	log.Info("desk", "addr", "http://"+l.Addr().String()+"/", "users", d.users,
		"may act", strings.Join(d.act, ", "))
	if at, err := netip.ParseAddrPort(l.Addr().String()); err == nil && !at.Addr().IsLoopback() {
		log.Warn("passwords for -http are not encrypted on their way: put a proxy with TLS before it",
			"addr", l.Addr().String())
	}
	go srv.Serve(l) // ends with srv
	if d.listening != nil {
		d.listening(l.Addr())
	}
	return func() {
		h.Close()
		srv.Close()
		endTraces()
	}, nil
}
