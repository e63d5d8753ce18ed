// Package admin is the desk of an operator: an [http.Handler] with a dashboard, a JSON API, probes
// and metrics for one or more brokers of a program.
//
//	desk := admin.New(map[string]*dunlin.Broker{"main": b}, admin.Options{
//		Authorize: admin.Basic(check), // who may look, and who may act
//	})
//	defer desk.Close()
//	http.ListenAndServe("127.0.0.1:8080", desk)
//
// The paths of a Handler are / (the dashboard), /api/v1/ (the API, which /api/v1/openapi.json
// describes), /livez, /readyz and /metrics. All addresses in the dashboard are relative, so that a
// program can serve a Handler below a path of its own, with [http.StripPrefix]. That path must end
// in a slash.
//
// # Who may do what
//
// A Handler refuses every request until Options.Authorize is set. [RoleRead] may look, at retained
// messages too. [RoleAct] may also act: disconnect clients, delete Sessions, ban, publish, clear
// retained messages, and read the packets of a client as they pass. Each action, also one that
// fails, is audited: who did it, from where, and what it was.
//
// # Against other pages
//
// A page of another site can make the browser of an operator send requests. A Handler refuses those
// that come from another origin, except links to the dashboard, and all whose Host is not one of
// Options.Hosts, so that a name that an attacker points at this address (DNS rebinding) is of no
// use. Client Identifiers, topics and payloads are texts that clients choose: no page shows them as
// HTML, and the Content-Security-Policy lets no script run but the one that is embedded here.
//
// Serve a Handler over TLS, or on a loopback address only: with [Basic], each request has a
// password.
package admin

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks/trace"
	"github.com/dunlin-mqtt/dunlin/internal/safelog"
)

// A Role is what somebody may do.
type Role byte

const (
	// RoleNone may do nothing.
	RoleNone Role = iota
	// RoleRead may look at everything but live packets.
	RoleRead
	// RoleAct may look and act.
	RoleAct
)

// String returns "none", "read" or "act".
func (r Role) String() string {
	switch r {
	case RoleRead:
		return "read"
	case RoleAct:
		return "act"
	}
	return "none"
}

// An Identity says who sends a request, and what they may do.
type Identity struct {
	// User is for the audit.
	User string
	Role Role
}

// Options configure a Handler.
type Options struct {
	// Authorize says who sends a request. An error refuses the request with 401, RoleNone with 403.
	// It is called for each request, on its goroutine, and every 20 seconds for a stream, which ends
	// when its reader may no longer read it. Nil: everything is refused. See Basic.
	Authorize func(r *http.Request) (Identity, error)
	// Challenge is the WWW-Authenticate header of a 401. Empty: that of Basic. "-": no header, as
	// for cookies.
	Challenge string
	// Hosts are the names, without port, by which browsers reach the Handler. Names of this machine
	// (localhost) and IP addresses are always allowed. A request with another Host is refused.
	Hosts []string
	// OpenProbes lets everybody ask /livez and /readyz. Whoever has no role learns only whether all
	// is well, not why.
	OpenProbes bool
	// Audit is told of each action after it. It may be called by several goroutines. Nil: actions
	// only go to the Logger. The Handler keeps the last 500 either way, and the last 500 kinds of
	// requests that were refused because their user may not act.
	Audit func(Record)
	// Logger gets the actions at Info, and refused requests at Debug. Nil: slog.Default.
	Logger *slog.Logger
	// LogLevel is the level that the action log-level sets: that of the program's logger. Nil:
	// there is no such action.
	LogLevel *slog.LevelVar
	// Events has, by name of the broker, the security events to show. See NewEvents.
	Events map[string]*Events
	// Traces has, by name of the broker, what writes packets to files. A Handler starts and stops
	// traces, and gives their files to those who may act. Each Recorder needs a folder of its own.
	// Nil: there are no traces.
	Traces map[string]*trace.Recorder
	// Interval is how often the Handler takes a sample of each broker, for the charts of the last
	// hour and those who look. Zero: 5 s. It is at least one second.
	Interval time.Duration
	// MaxStreams is how many event streams may be open at a time. Zero: 1,024.
	MaxStreams int
}

const (
	defaultInterval   = 5 * time.Second
	defaultMaxStreams = 1024
	// kept is how long samples are kept.
	kept = time.Hour
)

// A Handler is an http.Handler. Its methods may be called concurrently.
type Handler struct {
	opts    Options
	log     *slog.Logger
	brokers map[string]*desk
	names   []string // of brokers, sorted
	mux     *http.ServeMux
	routes  []route
	cross   *http.CrossOriginProtection
	audit   ring[Record]
	refused ring[Record]  // of users who may not act
	looks   *places       // for requests that look at many things
	streams chan struct{} // a place for each open stream

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// A desk is one broker with what is kept of it.
type desk struct {
	name    string
	b       *dunlin.Broker
	events  *Events
	history history
	hub     hub
	drain   drain
	traces  traces
	seen    seen
	whole   *places // for requests that look at all Sessions or retained messages
}

// New returns a Handler for the brokers, by their names. A name is shown, and stands in paths of
// the API and in labels of metrics. One goroutine takes samples until Close.
func New(brokers map[string]*dunlin.Broker, o Options) *Handler {
	o.Logger = safelog.Logger(o.Logger)
	if o.Interval == 0 {
		o.Interval = defaultInterval
	}
	o.Interval = max(o.Interval, time.Second)
	if o.MaxStreams <= 0 {
		o.MaxStreams = defaultMaxStreams
	}
	h := &Handler{
		opts: o, log: o.Logger, brokers: make(map[string]*desk, len(brokers)),
		names:   slices.Sorted(maps.Keys(brokers)),
		cross:   http.NewCrossOriginProtection(),
		audit:   ring[Record]{most: keptRecords},
		refused: ring[Record]{most: keptRecords},
		looks:   newPlaces(looksAtOnce),
		streams: make(chan struct{}, o.MaxStreams),
	}
	for name, b := range brokers {
		d := &desk{name: name, b: b, events: o.Events[name], whole: newPlaces(sortsAtOnce)}
		d.traces.recorder = o.Traces[name]
		d.seen.topics.most = keptTopics
		d.history.most = int(kept / o.Interval)
		h.brokers[name] = d
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.route()
	h.done.Go(h.sample) // Close waits for it
	return h
}

// Close ends the event streams and the goroutine of the Handler, and waits for that. Call it
// before, or by RegisterOnShutdown of, the http.Server: Shutdown of a Server waits for streams.
// Close may be called more than once. It does not close the brokers.
func (h *Handler) Close() error {
	h.cancel()
	h.done.Wait()
	return nil
}
