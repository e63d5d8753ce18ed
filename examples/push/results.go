package main

import (
	"context"
	"net/http"
	"sync"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// What the service remembers of pushes whose results somebody has asked for.
const (
	receiptProperty = "receipt" // the User Property that has the ID of such a push
	maxResults      = 10_000    // pushes
	maxDevices      = 1000      // clients of each
)

// A device is a client that a push is for.
type device struct {
	Account  string `json:"account"`
	ClientID string `json:"client_id"`
	State    string `json:"state"` // queued or sending; then acknowledged, sent (at QoS 0) or lost
	Reason   string `json:"reason,omitempty"`
}

// results are what became of pushes, the last ones that somebody has asked about.
type results struct {
	mu    sync.Mutex // taken with the lock of a Session of the broker held
	byID  map[string]*tracked
	order []string // of the IDs, oldest first
}

// A tracked is a push with its clients.
type tracked struct {
	result
	changed chan struct{} // closed when something becomes of it; then there is another one
}

// track remembers a push that is about to be published, and forgets the oldest one.
func (s *service) track(r *result, m *dunlin.Message) {
	t := &tracked{result: *r, changed: make(chan struct{})}
	seen := make(map[string]bool) // a client may have several subscriptions to it
	for x := range s.broker.Subscribers(m.Topic) {
		if !isAccount(x.Principal) || seen[x.ClientID] || len(t.Devices) == maxDevices {
			continue
		}
		seen[x.ClientID] = true
		d := device{Account: x.Principal, ClientID: clientID(x.Principal, x.ClientID),
			State: "sending"}
		if !x.Connected {
			d.State = "queued"
			if m.QoS == packets.QoS0 {
				d.State, d.Reason = "lost", "the client is away"
			}
		}
		t.Devices = append(t.Devices, d)
	}
	m.AddUser(receiptProperty, r.ID)
	q := &s.results
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.byID == nil {
		q.byID = make(map[string]*tracked)
	}
	q.byID[r.ID] = t
	if q.order = append(q.order, r.ID); len(q.order) > maxResults {
		delete(q.byID, q.order[0])
		q.order = q.order[1:]
	}
}

// settled takes what the broker says of a push and a client.
func (q *results) settled(e hooks.Settled) {
	who, _ := e.Client.User()
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.byID[e.Receipt]
	if t == nil || !isAccount(who) {
		return
	}
	now := device{Account: who, ClientID: clientID(who, e.Client.ID), State: "acknowledged"}
	if e.Reason != 0 {
		now.State, now.Reason = "lost", e.Reason.String()
	} else if e.QoS == packets.QoS0 {
		now.State = "sent"
	}
	known := false
	for i, d := range t.Devices {
		if d.Account == now.Account && d.ClientID == now.ClientID {
			t.Devices[i], known = now, true
		}
	}
	if !known && len(t.Devices) < maxDevices { // it came in between
		t.Devices = append(t.Devices, now)
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// result returns what has become of a push. changed is nil if nothing more can become of it.
func (q *results) result(id string) (r *result, changed chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.byID[id]
	if t == nil {
		return nil, nil
	}
	copied := t.result
	copied.Devices = append([]device(nil), t.Devices...)
	copied.Matched = len(copied.Devices)
	for _, d := range copied.Devices {
		switch d.State {
		case "acknowledged":
			copied.Acknowledged++
		case "lost":
			copied.Lost++
		case "queued", "sending":
			changed = t.changed
		}
	}
	return &copied, changed
}

// wait returns the result of a push when nothing more can become of it, or when ctx ends.
func (q *results) wait(ctx context.Context, id string) *result {
	for {
		r, changed := q.result(id)
		if changed == nil {
			return r
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return r
		}
	}
}

func getPush(c *call) (any, error) {
	r, _ := c.results.result(c.PathValue("id"))
	if r == nil {
		return nil, fail(http.StatusNotFound, "no such push is remembered: the last %d are that "+
			"were made with wait", maxResults)
	}
	return r, nil
}
