package hooks

import (
	"fmt"
	"slices"
	"sync"
)

// A Reloader is an Authorizer whose rules can change while clients are connected.
type Reloader interface {
	// OnReload registers f, to be called after every change of the rules, when the new rules are in
	// force. Calling stop ends that. f runs on the goroutine that made the change and must return
	// soon. The broker uses it to forget cached decisions and to start deciding the subscriptions
	// of its Sessions again.
	OnReload(f func()) (stop func())
}

// A Stable Authorizer can tell whether its decisions may be cached.
type Stable interface {
	// Stable reports whether a decision depends only on the Client, Action, Topic, QoS and Retain of
	// the request and the rules in force. The broker may then cache it for as long as the Client is
	// the same (a re-authentication makes a new one) and OnReload, if it exists, calls no function.
	// The result must always be the same.
	Stable() bool
}

// Stable reports true.
func (allowAll) Stable() bool { return true }

// Reloads implements [Reloader] for an Authorizer that embeds it. The Authorizer must call
// Reloaded. The zero value is ready for use. It must not be copied.
type Reloads struct {
	mu sync.Mutex
	fs []*func() // guarded by mu; replaced, never modified
}

// OnReload registers f. Each call of Reloaded that begins after OnReload has returned calls f,
// until stop is called. stop does not wait for a call in progress.
func (r *Reloads) OnReload(f func()) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fs = append(slices.Clip(r.fs), &f)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.fs = slices.DeleteFunc(slices.Clone(r.fs), func(p *func()) bool { return p == &f })
	}
}

// Reloaded calls the functions given to OnReload, in order.
func (r *Reloads) Reloaded() {
	r.mu.Lock()
	fs := r.fs
	r.mu.Unlock()
	for _, f := range fs {
		(*f)()
	}
}

// A ParseError says why a file of rules or users is refused.
type ParseError struct {
	File string // as given to the function that read it
	Line int    // beginning with 1
	Err  error
}

// Error returns "file:line: reason".
func (e *ParseError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }

// Unwrap returns e.Err.
func (e *ParseError) Unwrap() error { return e.Err }
