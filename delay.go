package dunlin

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
	"github.com/dunlin-mqtt/dunlin/internal/journal"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is delayed messages: $delayed/SECONDS/TOPIC, see Config.MaxDelay. Each is kept as a
// Will of its own that is due at its time. Its record in the store has a Client Identifier that
// begins with delayedPrefix, which no Session has.

const (
	delayedTopics = "$delayed/"
	delayedPrefix = localPrefix + "delayed/"
)

// undelay takes $delayed/SECONDS/ away from the topic of p, and returns the delay. It is 0 where
// the topic does not begin so, or nobody may delay.
func (c *conn) undelay(t *turn, p *packets.Publish) (time.Duration, error) {
	most := c.b.cfg().MaxDelay
	rest, ok := bytes.CutPrefix(p.Topic, []byte(delayedTopics))
	if !ok || most <= 0 {
		return 0, nil
	}
	seconds, topic, _ := bytes.Cut(rest, []byte("/"))
	n, err := strconv.ParseUint(string(seconds), 10, 32)
	if err != nil || n == 0 || len(topic) == 0 {
		return 0, packets.Errorf(packets.TopicNameInvalid,
			"expected $delayed/SECONDS/TOPIC with 1 or more seconds")
	}
	d := time.Duration(n) * time.Second
	if d > most {
		return 0, packets.Errorf(packets.TopicNameInvalid, "a delay of %v, at most %v is accepted",
			d, most)
	}
	p.Topic = topic
	if m := c.readExtra().mount; m != "" {
		t.mounted = append(append(t.mounted[:0], m...), topic...)
	}
	return d, nil
}

// delay keeps p, whose topic has its mount point, for d. The turn has then added it to the store.
func (c *conn) delay(t *turn, p *packets.Publish, d time.Duration) error {
	b, s := c.b, c.sess
	own := c.makeExtra()
	if own.delayer == nil || own.delayer.client != c.client {
		own.delayer = newDelayer(c.client, s.share())
	}
	x := &delayed{by: own.delayer, will: will{
		msg: &message{From: s.publisher(p.Retain), Message: packets.Message{
			Topic: string(p.Topic), QoS: p.QoS, Retain: p.Retain,
			Payload: bytes.Clone(p.Payload), Properties: bytes.Clone(p.Properties),
		}},
		mount: c.readExtra().mount, client: c.client, at: t.now.Add(d),
	}}
	x.delayed = x
	if err := b.holdDelayed(x, s.principal, s.named); err != nil {
		return err
	}
	j := b.journal
	if j == nil {
		x.wait(b, x.at)
		return nil
	}
	op := &store.PutSession{
		ClientID: delayedPrefix + s.id, Principal: s.principal, Username: c.client.Username,
		Named: s.named, Mount: s.mount,
		Will: &store.Will{Message: x.msg.Message, At: unixNano(x.at)},
	}
	err := j.Refusing()
	if err == nil {
		err = t.takeRoomFor(c, journal.Weigh(op))
	}
	if err != nil {
		x.over(b)
		return err
	}
	x.stored = j.key()
	op.Session = x.stored
	t.write.Begin(op)
	j.after(t.write.Batch(), func(q *sequel) { q.delayed = append(q.delayed, x) })
	if from := t.write.from; from != nil {
		t.write.Put(&store.Received{Session: from.stored, ID: t.write.id})
	}
	return nil
}

// holdDelayed counts x, which a principal has published, until over. It says why there is no room.
func (b *Broker) holdDelayed(x *delayed, principal string, named bool) error {
	n := x.size()
	if x.by.waiting.Load() == 0 {
		n += x.by.bytes
	}
	if !b.memory.Fits(budget.Sessions, n) {
		return errNoMemory
	}
	a := b.owners.Open(b.ownerName(principal, named))
	if !a.Room(owners.Kept, n) || !a.Take(owners.Delayed, 1) {
		b.owners.Close(a)
		return packets.Errorf(packets.QuotaExceeded,
			"too many delayed messages wait, or too many bytes")
	}
	b.keepDelayed(x, a)
	return nil
}

// keepDelayed counts x, whose place among the delayed messages of a is taken.
func (b *Broker) keepDelayed(x *delayed, a *owners.Account) {
	x.account = a
	n := x.size()
	if x.by.waiting.Add(1) == 1 {
		n += x.by.bytes
	}
	x.count(b, n)
}

// loadDelayed lets the delayed message wait whose record l is, and whose Session nobody else knows.
func (b *Broker) loadDelayed(l *loaded) {
	s := l.s
	s.id = strings.TrimPrefix(s.id, delayedPrefix)
	s.holder = b.holder(s.id, s.principal, s.named, s.mount)
	x := &delayed{will: *s.will, by: newDelayer(s.will.client, s.share())}
	x.delayed, x.stored = x, s.stored
	x.client.ID, x.msg.From = s.id, s.publisher(x.msg.Retain)
	a := b.owners.Open(b.ownerName(s.principal, s.named))
	a.Add(owners.Delayed, 1)
	b.keepDelayed(x, a)
	x.wait(b, x.at)
}
