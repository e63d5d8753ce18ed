package bridge

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// localUser is the User Name of the links at the broker here, localID begins their Client
// Identifiers.
const (
	localUser = "$bridge"
	localID   = "$bridge/"
)

// A Node is what one broker needs to be bridged with others. Its methods may be called
// concurrently.
type Node struct {
	cfg    Config                           // immutable, except that Links are those of New
	byID   atomic.Pointer[map[string]*link] // by the Client Identifier here
	secret string                           // the password of the links here
	marks  interceptor
	seen   recall
	door   *listeners.Memory // how the links connect to the broker here

	mu        sync.Mutex
	links     []*link            // guarded by mu
	installed bool               // guarded by mu
	broker    *dunlin.Broker     // guarded by mu; nil before Start
	running   context.Context    // guarded by mu; of the links, nil before Start
	begun     bool               // guarded by mu; the links run
	stop      context.CancelFunc // guarded by mu; nil before Start and after Close
	tasks     sync.WaitGroup     // the links, which Close waits for
	serving   sync.WaitGroup     // the listener, which Close waits for
}

// New makes a Node. Call Install, then dunlin.New, then Start.
func New(cfg Config) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, secret: rand.Text(), door: listeners.NewMemory()}
	n.seen.size = cfg.Remember
	n.marks.n = n
	for i := range cfg.Links {
		n.links = append(n.links, newLink(n, &n.cfg.Links[i]))
	}
	n.indexLocked()
	return n, nil
}

// indexLocked makes byID anew. n.mu is held, or nobody else knows n.
func (n *Node) indexLocked() {
	byID := make(map[string]*link, len(n.links))
	for _, l := range n.links {
		byID[l.id] = l
	}
	n.byID.Store(&byID)
}

// linkOf returns the link with a Client Identifier here, nil if there is none.
func (n *Node) linkOf(clientID string) *link { return (*n.byID.Load())[clientID] }

// at returns the broker, nil before Start.
func (n *Node) at() *dunlin.Broker {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.broker
}

// Install puts the Node into the Config of the broker: before its Interceptor and its Authorizer,
// beside its Observer, and, except with hooks.AllowAll, before its Authenticator. Call it once for
// the Config of dunlin.New, and for each Config of Reconfigure.
func (n *Node) Install(cfg *dunlin.Config) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.installed = true
	if cfg.Authenticator != nil && cfg.Authenticator != hooks.Authenticator(hooks.AllowAll) {
		cfg.Authenticator = &doorkeeper{n: n, next: cfg.Authenticator}
	}
	if cfg.Authorizer != nil {
		cfg.Authorizer = hooks.ChainAuthorizers(linkRules{n}, cfg.Authorizer)
	}
	n.marks.next = cfg.Interceptor
	cfg.Interceptor = &n.marks
	accepted := &hooks.Observer{
		Published: func(e hooks.Published) {
			if mark := readMark(e.Message.Properties); mark.id != 0 {
				n.seen.finish(mark.id)
			}
		},
		StoreFailed:    func(hooks.StoreFailed) { n.seen.forgetAll() },
		StoreRecovered: func(hooks.StoreRecovered) { n.seen.forgetAll() },
	}
	if cfg.Observer != nil {
		accepted = hooks.Join(accepted, cfg.Observer)
	}
	cfg.Observer = accepted
}

// Start makes the queues of the links here, as far as they are not there yet, and connects the
// links. b is the broker whose Config was given to Install. It must be called once. What is
// published when it has returned waits for the links. It waits for the Store of the broker, and for
// no remote broker.
func (n *Node) Start(b *dunlin.Broker) error {
	links, ctx, err := n.serve(b)
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := l.reserve(ctx); err != nil { // run tries again
			n.cfg.Logger.Warn("a bridge link has no queue", "link", l.cfg.Name, "err", err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.begun = n.stop != nil; !n.begun { // Close was called
		return nil
	}
	for _, l := range links {
		n.beginLocked(l, nil)
	}
	return nil
}

// serve lets the links connect to the broker here.
func (n *Node) serve(b *dunlin.Broker) (links []*link, ctx context.Context, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case !n.installed:
		return nil, nil, errors.New("bridge: Start: call Install with the Config of the broker " +
			"before")
	case n.broker != nil:
		return nil, nil, errors.New("bridge: Start was called before")
	}
	n.broker = b
	n.running, n.stop = context.WithCancel(context.Background())
	n.serving.Go(func() { b.Serve(n.door) }) // until Close
	return slices.Clone(n.links), n.running, nil
}

// beginLocked runs a link when the one before it has ended. n.mu is held.
func (n *Node) beginLocked(l, before *link) {
	ctx, stop := context.WithCancel(n.running)
	if before != nil && before.before != nil {
		before = before.before // the one between them never begins
	}
	l.stop, l.before = stop, before
	n.tasks.Go(func() { // until Close
		defer stop()
		if before != nil {
			select {
			case <-before.over:
			case <-l.retired:
			}
			n.mu.Lock()
			l.before = nil
			n.mu.Unlock()
		}
		l.run(ctx)
	})
}

// endLocked ends a link and those that it waits for. n.mu is held.
func (l *link) endLocked() {
	for ; l != nil; l = l.before {
		l.stop()
	}
}

// SetLink gives the Node a link while it runs, in place of the one of that name if there is one.
// The queue stays: it belongs to the name. A connection that is up is cut if now is true. Otherwise
// it lasts until it ends by itself.
func (n *Node) SetLink(cfg Link, now bool) error {
	cfg.Topics, cfg.Addresses = slices.Clone(cfg.Topics), slices.Clone(cfg.Addresses)
	if err := cfg.complete(n.cfg.Name); err != nil {
		return fmt.Errorf("bridge: link %q: %w", cfg.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stop == nil || !n.begun {
		return errNotRunning
	}
	l := newLink(n, &cfg)
	i := n.findLocked(cfg.Name)
	if i < 0 {
		n.links = append(n.links, l)
		n.indexLocked()
		n.beginLocked(l, nil)
		return nil
	}
	old := n.links[i]
	n.links[i] = l
	n.indexLocked()
	n.beginLocked(l, old)
	close(old.retired)
	if now {
		old.endLocked()
	}
	return nil
}

// RemoveLink ends a link, and its queue with what waits there. It waits until that is done, or ctx
// ends.
func (n *Node) RemoveLink(ctx context.Context, name string) error {
	n.mu.Lock()
	i := n.findLocked(name)
	if n.stop == nil || !n.begun || i < 0 {
		n.mu.Unlock()
		return errNotRunning
	}
	l := n.links[i]
	n.links = slices.Delete(n.links, i, i+1)
	n.indexLocked()
	b := n.broker
	l.endLocked()
	n.mu.Unlock()
	select {
	case <-l.over:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	_, err := b.DeleteSession(ctx, l.id)
	return err
}

// findLocked returns the place of a link, -1 if there is none. n.mu is held.
func (n *Node) findLocked(name string) int {
	return slices.IndexFunc(n.links, func(l *link) bool { return l.cfg.Name == name })
}

// errNotRunning is the error of changes to a Node that has no such link at work.
var errNotRunning = errors.New("bridge: there is no such link, or the Node does not run")

// Close ends the links, and waits until they have ended. What they have not carried waits in the
// Sessions at both ends. Call it before Close or Shutdown of the broker.
func (n *Node) Close() error {
	n.mu.Lock()
	stop := n.stop
	n.stop = nil
	n.mu.Unlock()
	if stop == nil {
		return nil
	}
	stop()
	n.tasks.Wait()
	n.door.Close()
	n.serving.Wait()
	return nil
}

// Publish publishes at the broker, like its own Publish, a message that can be told apart from
// others in a graph with circles. Messages of clients need no such call.
func (n *Node) Publish(ctx context.Context, m *dunlin.Message) error {
	b := n.at()
	if b == nil {
		return errors.New("bridge: Publish before Start")
	}
	mark := newMark()
	mark.path = n.cfg.Name
	return b.Publish(ctx, withMark(m, mark)) // the Observer notes that it is accepted
}

// A doorkeeper accepts the links at the broker here, and keeps their Client Identifiers for them.
type doorkeeper struct {
	n    *Node
	next hooks.Authenticator
}

// Authenticate is that of hooks.Authenticator.
func (d *doorkeeper) Authenticate(ctx context.Context, r *hooks.ConnectRequest) error {
	if !strings.HasPrefix(r.Client.ID, localID) {
		return d.next.Authenticate(ctx, r)
	}
	if subtle.ConstantTimeCompare(r.Connect.Password, []byte(d.n.secret)) != 1 {
		return packets.Errorf(packets.ClientIdentifierNotValid,
			"Client Identifiers that begin with "+
				localID+" belong to the links of the broker")
	}
	r.Grant.Identity.Principal = localUser
	return nil
}

// linkRules allow the links what their Topics say, which the links see to themselves.
type linkRules struct{ n *Node }

// Authorize is that of hooks.Authorizer.
func (x linkRules) Authorize(_ context.Context, r *hooks.AccessRequest) error {
	if x.n.linkOf(r.Client.ID) != nil && r.Client.Username == localUser {
		return nil
	}
	return hooks.ErrAbstain
}

// Stable says that the same question gets the same answer.
func (linkRules) Stable() bool { return true }
