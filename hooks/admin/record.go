package admin

import (
	"strings"
	"time"
)

// keptRecords is how many Records a Handler keeps: of actions, and of requests of users who may not
// act.
const keptRecords = 500

// A Record is one action, for the audit.
type Record struct {
	At     time.Time `json:"at"`
	User   string    `json:"user"`
	Remote string    `json:"remote"` // the address that the request came from
	Action string    `json:"action"` // as in the path, for instance "disconnect"
	Broker string    `json:"broker,omitempty"`
	About  string    `json:"about,omitempty"` // for instance a Client Identifier
	// Err is why nothing, or not all, was done. Empty: it was done.
	Err string `json:"err,omitempty"`
	// Count is how many requests like this one were refused because their user may not act. First
	// is when the first one was. They are 0 for other actions, and for Options.Audit.
	Count uint64    `json:"count,omitempty"`
	First time.Time `json:"first,omitzero"`
}

// record keeps, logs and tells an action.
func (c *call) record(err error) {
	c.recorded = true
	x := Record{At: time.Now(), User: c.who.User, Remote: c.r.RemoteAddr, About: cut(c.about),
		Action: c.route.name()}
	if c.desk != nil {
		x.Broker = c.desk.name
	}
	if err != nil {
		x.Err = cut(asProblem(err).message)
	}
	if c.who.Role < c.route.role {
		c.h.refused.add(strings.Join([]string{x.User, hostOf(x.Remote), x.Broker, x.Action}, " "), x)
	} else {
		c.h.audit.add("", x)
	}
	c.h.log.Info("admin action", "action", x.Action, "broker", x.Broker, "about", x.About,
		"user", x.User, "remote", x.Remote, "err", x.Err)
	if f := c.h.opts.Audit; f != nil {
		f(x)
	}
}

// cut returns at most 512 bytes of a text that somebody else has chosen.
func cut(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

// audited lists the last actions.
func (c *call) audited() error {
	n, err := c.limit()
	if err != nil {
		return err
	}
	page := page[Record]{Items: []Record{}}
	for _, x := range newestOf(n, &c.h.audit, &c.h.refused) {
		if x.key != "" {
			x.value.First, x.value.Count = x.first, x.count
		}
		page.Items = append(page.Items, x.value)
	}
	return c.answer(page)
}
