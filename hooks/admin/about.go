package admin

import (
	_ "embed"
	"net/http"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/metrics"
)

// This file is what a Handler says of itself and its brokers: names, probes, its description.

// meView is who sends the request, and what the Handler is.
type meView struct {
	User    string   `json:"user"`
	Role    string   `json:"role"` // "read" or "act"
	Brokers []string `json:"brokers"`
	Version string   `json:"version"`
	// Interval is how many seconds are between two samples.
	Interval float64 `json:"interval"`
	// LogLevel is the level of the program's log, empty if it cannot be set here.
	LogLevel string `json:"log_level,omitempty"`
}

// me says who sends the request, and what there is.
func (c *call) me() error {
	me := meView{User: c.who.User, Role: c.who.Role.String(), Brokers: c.h.names,
		Version: dunlin.Version, Interval: c.h.opts.Interval.Seconds()}
	if l := c.h.opts.LogLevel; l != nil {
		me.LogLevel = l.Level().String()
	}
	return c.answer(me)
}

// brokerView is a broker and its state.
type brokerView struct {
	Name string `json:"name"`
	// Health and Readiness say why the store fails, and why no new clients are welcome. Empty: all
	// is well.
	Health    string `json:"health,omitempty"`
	Readiness string `json:"readiness,omitempty"`
	// Drain is the last drain that was begun here.
	Drain *drainView `json:"drain,omitempty"`
}

// list lists the brokers, and whether each is well.
func (c *call) list() error {
	page := page[brokerView]{Items: []brokerView{}}
	for _, name := range c.h.names {
		b := c.h.brokers[name].b
		x := brokerView{Name: name, Drain: c.h.brokers[name].drain.view()}
		if err := b.Healthy(); err != nil {
			x.Health = err.Error()
		}
		if err := b.Ready(); err != nil {
			x.Readiness = err.Error()
		}
		page.Items = append(page.Items, x)
	}
	return c.answer(page)
}

// A probeView is the answer of /livez and /readyz.
type probeView struct {
	OK bool `json:"ok"`
	// Reasons has, by broker, why it is not ready.
	Reasons map[string]string `json:"reasons,omitempty"`
}

// livez says that the program runs and answers.
func (c *call) livez() error { return c.answer(probeView{OK: true}) }

// readyz says whether all brokers take new clients.
func (c *call) readyz() error {
	p := probeView{OK: true}
	for _, name := range c.h.names {
		if err := c.h.brokers[name].b.Ready(); err != nil {
			p.OK = false
			if c.who.Role >= RoleRead {
				if p.Reasons == nil {
					p.Reasons = map[string]string{}
				}
				p.Reasons[name] = err.Error()
			}
		}
	}
	status := http.StatusOK
	if !p.OK {
		status = http.StatusServiceUnavailable
	}
	answerJSON(c.w, status, p)
	return nil
}

//go:embed openapi.json
var openAPI []byte

// openAPI gives this description.
func (c *call) openAPI() error {
	return c.say(jsonType, openAPI)
}

// metrics gives what Prometheus reads, in its text format.
func (c *call) metrics() error {
	all := make([][]metrics.Family, len(c.h.names))
	for i, name := range c.h.names {
		all[i] = metrics.Of(c.h.brokers[name].b)
	}
	return c.say("text/plain; version=0.0.4; charset=utf-8",
		metrics.Append(nil, c.h.names, all))
}
