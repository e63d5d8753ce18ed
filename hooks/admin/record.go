package admin

import (
	"time"
)

// keptRecords is how many Records a Handler keeps.
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
	c.h.audit.add(x)
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
	return c.answer(page[Record]{Items: c.h.audit.newest(n)})
}
