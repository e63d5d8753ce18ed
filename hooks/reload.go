package hooks

import (
	"fmt"
	"slices"
	"sync"
)

// A Reloader is an Authorizer whose rules can change while clients are connected.
type Reloader interface {
	// OnReload has f called after every change of the rules, when the new ones are in force, until stop has been called. f
	// runs on the goroutine that made the change and must return soon: it is the moment at which a broker forgets the
	// decisions that it kept and starts to decide the subscriptions of its Sessions again.
	OnReload(f func()) (stop func())
}

// A Stable Authorizer may say that its decisions can be kept.
type Stable interface {
	// Stable reports whether a decision depends on nothing but the Client, Action and Topic of the request and the rules
	// in force. Then a broker may keep it for as long as that Client is the same (a re-authentication makes a new one) and
	// OnReload, if there is one, calls nobody. The result must always be the same.
	Stable() bool
}

// Stable reports true.
func (allowAll) Stable() bool { return true }

// Reloads is a [Reloader] for embedding in an Authorizer, whose part it is to call Reloaded. The zero value is ready for use.
// It must not be copied.
type Reloads struct {
	mu sync.Mutex
	fs []*func() // guarded by mu; replaced, never modified
}

// OnReload has f called by each call of Reloaded that begins after OnReload returned, until stop has been called. A call under
// way is not waited for.
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

// Reloaded calls what OnReload was given, in order.
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
	File string // as given to what read it
	Line int    // beginning with 1
	Err  error
}

// Error returns "file:line: reason".
func (e *ParseError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }

// Unwrap returns e.Err.
func (e *ParseError) Unwrap() error { return e.Err }
