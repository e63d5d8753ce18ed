package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// These User Properties are the mark of a message: a random number that it gets where it begins,
// and the names of the brokers that it has passed, separated by commas.
const (
	idProperty   = "dunlin-bridge-id"
	pathProperty = "dunlin-bridge-path"
)

// peerProperty in the CONNECT of a link says that it is one, with the name of its Node.
const peerProperty = "dunlin-bridge-node"

// unmarked in a path says that the message came over a link without marks: see Link.Transit.
const unmarked = "*"

// A mark is what the User Properties say.
type mark struct {
	id   uint64 // zero: none
	path string
}

// readMark reads the mark of a message. One that is not valid counts as none.
func readMark(p packets.Properties) (m mark) {
	for k, v := range p.User() {
		switch k {
		case idProperty:
			if len(v) != 16 {
				continue
			}
			m.id, _ = strconv.ParseUint(v, 16, 64)
		case pathProperty:
			m.path = v
		}
	}
	return m
}

// put returns p with m in the place of the mark that it has.
func (m mark) put(p packets.Properties) packets.Properties {
	q := p.Without(make(packets.Properties, 0, len(p)+len(m.path)+64), packets.UserProperty)
	for k, v := range p.User() {
		if k != idProperty && k != pathProperty {
			q = q.AppendUser(k, v)
		}
	}
	if m.id != 0 {
		q = q.AppendUser(idProperty, fmt.Sprintf("%016x", m.id)).AppendUser(pathProperty, m.path)
	}
	return q
}

// passed says whether the message has been at a broker.
func (m mark) passed(name string) bool {
	for hop := range strings.SplitSeq(m.path, ",") {
		if hop == name {
			return true
		}
	}
	return false
}

// newMark returns a mark that nobody can know before.
func newMark() mark {
	for {
		if id := rand.Uint64(); id != 0 {
			return mark{id: id}
		}
	}
}

// An interceptor marks messages, and drops those that were here before.
type interceptor struct {
	n       *Node
	next    hooks.Interceptor
	dropped struct{ loops, duplicates atomic.Uint64 }
}

// Intercept is that of hooks.Interceptor.
func (x *interceptor) Intercept(
	ctx context.Context, c *hooks.Client, m *packets.Message,
) (*packets.Message, error) {
	came := readMark(m.Properties)
	had := came != mark{}
	link := x.n.linkOf(c.ID)
	if link == nil && !x.n.peer(c) {
		came = mark{}
	}
	if came.id == 0 {
		came = mark{} // a path without a number is not one of ours
		if !x.n.marked(m.Topic) {
			if had {
				m = withMark(m, mark{})
			}
			return x.ask(ctx, c, m)
		}
		came = x.n.begins(c, link)
	} else if err := x.admit(ctx, c, came); err != nil {
		return nil, err
	}
	if came.path != "" {
		came.path += ","
	}
	came.path += x.n.cfg.Name
	marked, err := x.ask(ctx, c, withMark(m, came))
	if err != nil {
		x.n.seen.forget(came.id)
	}
	return marked, err
}

// admit says why a marked message is not accepted.
func (x *interceptor) admit(ctx context.Context, c *hooks.Client, came mark) error {
	if came.passed(x.n.cfg.Name) || strings.Count(came.path, ",")+1 >= x.n.cfg.MaxHops {
		x.dropped.loops.Add(1)
		return hooks.ErrDrop
	}
	if !x.n.seen.begin(ctx, came.id, c.ID) {
		x.dropped.duplicates.Add(1)
		return hooks.ErrDrop
	}
	return nil
}

func withMark(m *packets.Message, put mark) *packets.Message {
	out := *m
	out.Properties = put.put(m.Properties)
	return &out
}

// ask asks the program's own Interceptor.
func (x *interceptor) ask(
	ctx context.Context, c *hooks.Client, m *packets.Message,
) (*packets.Message, error) {
	if x.next == nil {
		return m, nil
	}
	return x.next.Intercept(ctx, c, m)
}

// begins returns the mark of a message that has none: it begins here, or came from a broker that
// gives none.
func (n *Node) begins(c *hooks.Client, from *link) mark {
	m := newMark()
	switch {
	case from != nil:
		m.path = from.cfg.Remote
		if from.cfg.Version != packets.V5 {
			m.path = strings.TrimPrefix(m.path+","+unmarked, ",")
		}
	case c.Bridge:
		m.path = unmarked
	}
	return m
}

// peer says whether the marks that a client sends are to be believed.
func (n *Node) peer(c *hooks.Client) bool {
	if n.cfg.Peer != nil {
		return n.cfg.Peer(c)
	}
	for k := range c.Properties.User() {
		if k == peerProperty {
			return true
		}
	}
	return c.Bridge
}

// marked says whether messages of topic get a mark.
func (n *Node) marked(topic string) bool {
	if n.cfg.DisableMarks {
		return false
	}
	if len(n.cfg.Mark) == 0 {
		return topic[0] != '$'
	}
	return slices.ContainsFunc(n.cfg.Mark, func(filter string) bool {
		return packets.MatchTopic(filter, topic)
	})
}
