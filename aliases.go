package dunlin

import (
	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the Topic Aliases of a connection (3.3.2.3.4), in both directions.

// How long the topics of Topic Aliases may be on average, and what an alias takes besides.
const (
	aliasBytes   = 2 << 10
	aliasCost    = 16 // one of the client
	outAliasCost = 48 // one towards the client
)

// clientAliases are those of the client.
type clientAliases struct {
	topics []string        // by Topic Alias
	size   int32           // bytes, as they are counted
	owner  *owners.Account // they count for it
}

// outAliases are those towards the client: the first topics get one each.
type outAliases struct {
	of    map[string]uint16
	most  int
	size  int32           // bytes, as they are counted
	owner *owners.Account // they count for it
}

// admitAliases says whether the aliases of a connection may have so many bytes, of which grown are
// new.
func (b *Broker) admitAliases(owner *owners.Account, size, grown int) error {
	most := b.cfg().TopicAliasMaximum
	most = max(b.cfg().MaxTopicLength, most*aliasBytes) + most*outAliasCost
	switch {
	case grown <= 0:
		return nil
	case size > most:
		return packets.Errorf(packets.QuotaExceeded,
			"the topics of all Topic Aliases have more than %d bytes", most)
	case !b.memory.Fits(budget.Sessions, int64(grown)) || !owner.Room(owners.Kept, int64(grown)):
		return errNoMemory
	}
	return nil
}

// countAliases makes *counted, bytes of aliases that count for owner, size.
func (b *Broker) countAliases(owner *owners.Account, counted *int32, size int) {
	owner.Add(owners.Kept, int64(size)-int64(*counted))
	b.memory.Recount(budget.Sessions, counted, size)
}

// set makes an alias of c stand for topic.
func (as *clientAliases) set(c *conn, alias int, topic []byte) error {
	grown := len(topic) + max(alias-len(as.topics), 0)*aliasCost
	if alias <= len(as.topics) {
		if as.topics[alias-1] == string(topic) {
			return nil
		}
		grown -= len(as.topics[alias-1])
	}
	if as.owner == nil {
		c.sess.mu.Lock()
		as.owner = c.sess.out.owner
		c.sess.mu.Unlock()
	}
	b, size := c.b, int(as.size)+grown
	if err := b.admitAliases(as.owner, size, grown); err != nil {
		return err
	}
	for len(as.topics) < alias {
		as.topics = append(as.topics, "")
	}
	as.topics[alias-1] = string(topic)
	b.countAliases(as.owner, &as.size, size)
	return nil
}

// topic returns what an alias of the client stands for.
func (as *clientAliases) topic(alias int) (string, error) {
	if alias > len(as.topics) || as.topics[alias-1] == "" {
		return "", packets.Errorf(packets.ProtocolError, "Topic Alias %d has no topic", alias)
	}
	return as.topics[alias-1], nil
}

// end forgets all.
func (as *clientAliases) end(b *Broker) {
	if as.topics != nil {
		as.topics = nil
		b.countAliases(as.owner, &as.size, 0)
	}
}

// send, with s.mu held, where s is the Session, returns what to send in the place of a topic: its
// alias, with the topic when that is new, or the topic alone. The client accepts no aliases if as
// is nil.
func (as *outAliases) send(s *session, topic string) (string, uint16) {
	if as == nil {
		return topic, 0
	}
	if a, ok := as.of[topic]; ok {
		return "", a
	}
	if as.owner == nil {
		as.owner = s.out.owner
	}
	b, grown := s.b, len(topic)+outAliasCost
	size := int(as.size) + grown
	if len(as.of) >= as.most || b.admitAliases(as.owner, size, grown) != nil {
		return topic, 0
	}
	a := uint16(len(as.of) + 1)
	as.of[topic] = a
	b.countAliases(as.owner, &as.size, size)
	return topic, a
}

// unsent takes back what send has done last, for a new topic.
func (as *outAliases) unsent(b *Broker, topic string) {
	delete(as.of, topic)
	b.countAliases(as.owner, &as.size, int(as.size)-len(topic)-outAliasCost)
}

// end forgets all.
func (as *outAliases) end(b *Broker) {
	if as != nil {
		as.of, as.most = nil, 0
		b.countAliases(as.owner, &as.size, 0)
	}
}
