package admin

import (
	"net/http"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
)

// This file is the drain: all clients are moved to another server, which takes a while.

// drainBody moves all clients to another server, and keeps new ones out until undrain.
type drainBody struct {
	// PerSecond is how many clients are moved in a second. Zero: 1,000.
	PerSecond int `json:"per_second,omitempty"`
	// ServerReference tells clients of 5.0 where to go.
	ServerReference string `json:"server_reference,omitempty"`
	// Moved tells them that they should never come back.
	Moved bool `json:"moved,omitempty"`
}

// undrainBody has nothing to say.
type undrainBody struct{}

// A drainView is a drain.
type drainView struct {
	Began time.Time `json:"began"`
	// Running is true until it has ended: then all clients were moved, or Err says why not.
	Running bool   `json:"running"`
	Moved   int    `json:"moved"`
	Err     string `json:"err,omitempty"`
}

// A drain is the last one of a broker that was begun here.
type drain struct {
	mu   sync.Mutex
	last *drainView // guarded by mu; replaced, never changed
}

func (x *drain) view() *drainView {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.last
}

func (x *drain) set(v *drainView) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last = v
}

// startDrain begins to move all clients to another server. New ones are refused until undrain.
func (c *call) startDrain() error {
	var a drainBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.ServerReference
	if a.PerSecond < 0 || len(a.ServerReference) > 1024 {
		return fail(http.StatusBadRequest, "drain", "a drain moves at least one client a second, "+
			"and the reference has at most 1,024 bytes")
	}
	d := c.desk
	x := &d.drain
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.last != nil && x.last.Running || c.h.ctx.Err() != nil {
		return fail(http.StatusConflict, "drain", "a drain is under way")
	}
	began := time.Now()
	x.last = &drainView{Began: began, Running: true}
	// Close waits for it: it ends with the context.
	c.h.done.Go(func() {
		moved, err := d.b.Drain(c.h.ctx, dunlin.DrainOptions{PerSecond: a.PerSecond,
			ServerReference: a.ServerReference, Moved: a.Moved})
		v := &drainView{Began: began, Moved: moved}
		if err != nil {
			v.Err = err.Error()
		}
		x.set(v)
	})
	return c.did(d.b.Stats().Connections)
}

// undrain lets clients in again after a drain, also while it is under way.
func (c *call) undrain() error {
	var a undrainBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.desk.b.Undrain()
	return c.did(1)
}
