package bridge

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"strings"
	"sync"

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
	cfg    Config // immutable
	links  []*link
	byID   map[string]*link // by the Client Identifier here
	secret string           // the password of the links here
	marks  interceptor
	seen   recall
	door   *listeners.Memory // how the links connect to the broker here

	mu        sync.Mutex
	installed bool               // guarded by mu
	broker    *dunlin.Broker     // guarded by mu; nil before Start
	stop      context.CancelFunc // guarded by mu
	tasks     sync.WaitGroup     // the links and the listener, which Close waits for
}

// New makes a Node. Call Install, then dunlin.New, then Start.
func New(cfg Config) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, secret: rand.Text(), byID: map[string]*link{}, door: listeners.NewMemory()}
	n.seen.size = cfg.Remember
	n.marks.n = n
	for i := range cfg.Links {
		l := newLink(n, &n.cfg.Links[i])
		n.links = append(n.links, l)
		n.byID[l.id] = l
	}
	return n, nil
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

// Start connects the links. b is the broker whose Config was given to Install. It must be called
// once.
func (n *Node) Start(b *dunlin.Broker) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case !n.installed:
		return errors.New("bridge: Start: call Install with the Config of the broker before")
	case n.broker != nil:
		return errors.New("bridge: Start was called before")
	}
	ctx, stop := context.WithCancel(context.Background())
	n.broker, n.stop = b, stop
	n.tasks.Go(func() { b.Serve(n.door) }) // until Close
	for _, l := range n.links {
		n.tasks.Go(func() { l.run(ctx) }) // until Close
	}
	return nil
}

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
	for _, l := range n.links {
		<-l.over
	}
	n.door.Close()
	n.tasks.Wait()
	return nil
}

// Publish publishes at the broker, like its own Publish, a message that can be told apart from
// others in a graph with circles. Messages of clients need no such call.
func (n *Node) Publish(ctx context.Context, m *dunlin.Message) error {
	n.mu.Lock()
	b := n.broker
	n.mu.Unlock()
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
	if x.n.byID[r.Client.ID] != nil && r.Client.Username == localUser {
		return nil
	}
	return hooks.ErrAbstain
}

// Stable says that the same question gets the same answer.
func (linkRules) Stable() bool { return true }
