package dunlin

import (
	"net"
	"slices"
	"strconv"
	"sync"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is the clients of the model, see model_test.go.

// A modelClient is a client as the standard wants it: what it has sent and not got acknowledged it
// sends again, what it has received at QoS 2 it remembers until PUBREL. It outlives Brokers.
type modelClient struct {
	inbox
	w       *modelWorld
	version packets.Version
	clean   bool   // its Sessions end with the connection
	expiry  uint32 // Session Expiry Interval of the others
	ends    bool   // its Session may end
	leaves  bool   // it has Wills

	link  *modelLink // nil: away
	dials int
	anew  bool // this connection began with Clean Start
	modelState
	will    *modelWill
	absent  bool      // no Session of it may be there
	expired bool      // nor of this one, but after a crash: that it left may not be stored
	left    time.Time // when the connection before this one ended, at the earliest
	last    time.Time // and at the latest

	flight   []*modelOut
	lastID   uint16
	received map[uint16]*modelMessage // by QoS 2 identifiers
}

// A modelState is how far a connection is.
type modelState struct {
	ready   bool // CONNACK came
	leaving bool // it has sent DISCONNECT
	ending  bool // which ends the Session
	deleted bool // DeleteSession was called meanwhile
	subbing bool // SUBSCRIBE or UNSUBSCRIBE is under way
}

// A modelOut is a message that the client has not got acknowledged.
type modelOut struct {
	*modelMessage
	id       uint16
	released bool // PUBREC came
}

// A modelLink is the client's end of a connection.
type modelLink struct {
	nc  net.Conn
	mu  sync.Mutex
	in  []byte // guarded by mu
	eof bool   // guarded by mu
}

func (l *modelLink) read() {
	buf := make([]byte, 4096)
	for {
		n, err := l.nc.Read(buf)
		l.mu.Lock()
		l.in = append(l.in, buf[:n]...)
		l.eof = err != nil
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// over says whether the broker has closed the connection.
func (l *modelLink) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.eof
}

// next takes the next packet, nil if none is whole. over says that none will come.
func (l *modelLink) next(c *modelClient) (p packets.Packet, over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, err := packets.ParseHeader(l.in, c.version)
	if err == packets.ErrShort || err == nil && len(l.in) < h.Len+h.Remaining {
		return nil, l.eof
	}
	if err != nil {
		c.w.t.Fatalf("%s: %v", c.id, err)
	}
	p = packetOf(h.Type)
	err = p.Decode(h, slices.Clone(l.in[h.Len:h.Len+h.Remaining]), c.version)
	if err != nil {
		c.w.t.Fatalf("%s: %v: %v", c.id, h.Type, err)
	}
	l.in = l.in[h.Len+h.Remaining:]
	return p, false
}

func packetOf(t packets.Type) packets.Packet {
	switch t {
	case packets.TypeConnack:
		return new(packets.Connack)
	case packets.TypePublish:
		return new(packets.Publish)
	case packets.TypeSuback:
		return new(packets.Suback)
	case packets.TypeUnsuback:
		return new(packets.Unsuback)
	case packets.TypeDisconnect:
		return new(packets.Disconnect)
	case packets.TypePingresp:
		return new(packets.Pingresp)
	}
	return new(packets.Ack)
}

func (c *modelClient) send(p packets.Packet) {
	b, err := p.Append(nil, c.version)
	if err != nil {
		c.w.t.Fatalf("%s: %v", c.id, err)
	}
	if c.link != nil {
		c.link.nc.Write(b) // one that the broker has closed shows in what is read
	}
}

// connect opens a connection, which takes over the one that there is, if any.
func (c *modelClient) connect() {
	nc, err := c.w.l.Dial()
	if err != nil {
		c.w.t.Fatal(err)
	}
	old := c.link
	if old != nil {
		c.lose(takenOver)
	}
	c.w.resumes(c)
	c.dials++
	c.link, c.modelState = &modelLink{nc: nc}, modelState{}
	go c.link.read()
	c.anew = c.clean || c.ends && c.w.rnd.IntN(5) == 0
	if c.anew {
		c.forget()
	}
	c.volatile = c.volatile || !c.lasting()
	p := &packets.Connect{Version: c.version, CleanStart: c.anew, ClientID: c.id}
	if c.version == packets.V5 && !c.clean {
		p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, c.expiry)
	}
	if c.version == packets.V5 && c.w.rnd.IntN(2) == 0 {
		p.Properties = p.Properties.AppendUint(packets.ReceiveMaximum, uint32(1+c.w.rnd.IntN(5)))
	}
	if c.leaves && c.w.rnd.IntN(3) > 0 {
		p.Will = c.makeWill()
	}
	c.w.say("  %s begins anew: %v", c.id, c.anew)
	c.send(p)
	if old != nil {
		synctest.Wait() // until the broker has taken the Session over, or has refused to
		old.nc.Close()
	}
}

// lasting says whether the Session of this connection outlives it.
func (c *modelClient) lasting() bool { return !c.clean && (c.version == packets.V5 || !c.anew) }

// cut ends the connection without DISCONNECT.
func (c *modelClient) cut(how modelLoss) {
	if c.link == nil {
		return
	}
	if how == byClient && c.link.over() {
		how = byBroker // the client only has not looked
	}
	c.link.nc.Close()
	c.lose(how)
	c.link = nil
}

// A modelLoss is who has ended a connection.
type modelLoss byte

const (
	byClient modelLoss = iota
	byBroker
	takenOver
	killed
)

// lose is the end of the connection.
func (c *modelClient) lose(how modelLoss) {
	c.last = time.Now()
	if c.ready {
		c.left = c.last
	}
	c.w.fires(c, how)
	switch {
	case !c.lasting():
		c.forget()
		// While the store is full it is accepted although the end of the one before is not durable.
		c.absent = c.absent || c.ready && !c.w.wasFull
	case how == byBroker && c.ending && !c.deleted && !c.w.wasFull:
		// a store that fails has said so
		c.absent = true
	default:
		c.absent = false
	}
	c.ready = false
}

// expire takes note that time has passed.
func (c *modelClient) expire() {
	c.expired = false
	if c.ready || !c.ends || !c.lasting() || c.left.IsZero() {
		return
	}
	now, expiry := time.Now(), time.Duration(c.expiry)*time.Second
	if now.Sub(c.left) > expiry-time.Second {
		c.forget()
	}
	c.expired = c.link == nil && now.Sub(c.last) > expiry+2*time.Second
}

// forget gives up the state of a Session that may end. If that goes on all the same, what the
// client has not released comes again.
func (c *modelClient) forget() {
	c.endLife()
	c.ended = append(c.ended, c.w.tick())
	c.flight = nil
	for _, m := range c.received {
		c.again[m] = true
	}
	clear(c.received)
}

// pump handles up to n packets that have come.
func (c *modelClient) pump(n int) (handled int) {
	for ; handled < n && c.link != nil; handled++ {
		p, over := c.link.next(c)
		if p == nil {
			if over {
				c.cut(byBroker)
			}
			return handled
		}
		c.handle(p)
	}
	return handled
}

func (c *modelClient) handle(p packets.Packet) {
	switch p := p.(type) {
	case *packets.Connack:
		c.connected(p)
	case *packets.Suback:
		c.subbing = false
		if p.Codes[0].Failed() {
			c.cut(byClient)
			return
		}
		if !c.leaving && !c.deleted {
			c.begin()
		}
	case *packets.Unsuback:
		c.subbing = false
	case *packets.Publish:
		c.publish(p)
	case *packets.Ack:
		c.ack(p)
	}
}

func (c *modelClient) connected(p *packets.Connack) {
	if p.Code != packets.Success {
		c.w.say("%s is refused: %v", c.id, p.Code)
		c.will = nil
		c.cut(byClient)
		return
	}
	c.w.say("  %s is accepted, with a session: %v", c.id, p.SessionPresent)
	c.ready = true
	if c.will != nil {
		c.w.opens(c.will.modelMessage)
		c.will.stays = c.lasting() || !c.w.wasFull
	}
	switch {
	case c.anew && p.SessionPresent:
		c.w.fail("%s has a session behind a Clean Start", c.id)
	case (c.absent || c.expired) && p.SessionPresent:
		c.w.fail("%s: a session that had ended is back", c.id)
	case c.life != nil && !p.SessionPresent:
		c.w.fail("%s: the session is gone", c.id)
	}
	c.absent = false
	if !p.SessionPresent {
		c.forget()
	}
	c.online()
	c.subscribe()
	for _, o := range c.flight {
		c.resend(o)
	}
	if c.leaves {
		c.open(packets.QoS1, "w/"+c.id, true)
	}
}

// subscribe subscribes to the filter of the client, if it is not known that it has.
func (c *modelClient) subscribe() {
	if c.filter == "" || c.life != nil || c.subbing || !c.ready {
		return
	}
	c.subbing = true
	sub := packets.Subscription{Filter: c.filter, QoS: c.qos}
	c.send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{sub}})
}

func (c *modelClient) unsubscribe() {
	if c.filter == "" || c.subbing || !c.ready {
		return
	}
	c.endLife()
	c.subbing = true
	c.send(&packets.Unsubscribe{PacketID: 2, Filters: []string{c.filter}})
}

// disconnect leaves as one should, and may end the Session.
func (c *modelClient) disconnect(ends bool) {
	if !c.ready || c.leaving {
		return
	}
	p := &packets.Disconnect{}
	c.leaving, c.ready, c.left = true, false, time.Now()
	if ends && c.version == packets.V5 && c.lasting() {
		p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 0)
		c.forget()
		c.ending = true
	}
	c.send(p)
}

func (c *modelClient) resend(o *modelOut) {
	if o.released {
		c.send(&packets.Ack{Kind: packets.TypePubrel, PacketID: o.id})
		return
	}
	o.sends++
	c.send(&packets.Publish{
		PacketID: o.id, QoS: o.qos, Topic: []byte(o.topic), Payload: []byte(o.payload),
		Retain: o.retain, Dup: o.sends > 1,
	})
}

func (c *modelClient) publish(p *packets.Publish) {
	switch p.QoS {
	case packets.QoS1:
		c.send(&packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID})
	case packets.QoS2:
		_, again := c.received[p.PacketID]
		if !again {
			c.received[p.PacketID] = c.w.messageOf(p.Payload)
		}
		c.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: p.PacketID})
		if again {
			return
		}
	}
	if !p.Retain { // what a new subscription brings is no new message
		c.got(string(p.Payload))
	}
}

func (c *modelClient) ack(a *packets.Ack) {
	if a.Kind == packets.TypePubrel {
		delete(c.received, a.PacketID)
		c.send(&packets.Ack{Kind: packets.TypePubcomp, PacketID: a.PacketID})
		return
	}
	i := slices.IndexFunc(c.flight, func(o *modelOut) bool { return o.id == a.PacketID })
	if i < 0 {
		return
	}
	o := c.flight[i]
	switch {
	case a.Kind != packets.TypePubcomp && a.Code.Failed():
		c.w.refused(o.modelMessage)
	case a.Kind == packets.TypePubrec:
		o.released = true
		c.w.acknowledged(o.modelMessage)
		c.send(&packets.Ack{Kind: packets.TypePubrel, PacketID: a.PacketID})
		return
	case a.Kind == packets.TypePuback:
		c.w.acknowledged(o.modelMessage)
	}
	c.flight = slices.Delete(c.flight, i, i+1)
}

// open publishes something new.
func (c *modelClient) open(qos packets.QoS, topic string, retain bool) {
	for {
		c.lastID++
		if c.lastID == 0 {
			c.lastID = 1
		}
		if !slices.ContainsFunc(c.flight, func(o *modelOut) bool { return o.id == c.lastID }) {
			break
		}
	}
	m := c.w.message(c.id, topic, qos, retain)
	c.w.opens(m)
	o := &modelOut{modelMessage: m, id: c.lastID}
	c.flight = append(c.flight, o)
	c.w.say("  %s publishes %s to %s at QoS %d", c.id, o.payload, topic, qos)
	if c.ready {
		c.resend(o)
	}
}

// more publishes something of the usual.
func (c *modelClient) more() {
	if len(c.flight) >= 8 || !c.ready || c.leaving {
		return
	}
	qos := packets.QoS(1 + c.w.rnd.IntN(2))
	switch c.w.rnd.IntN(6) {
	case 0: // one QoS only, so that there is one order
		c.open(packets.QoS2, "t/"+c.id+"/r", true)
	case 1:
		c.open(qos, "r/x", true)
	default:
		c.open(qos, "t/"+c.id+"/q"+strconv.Itoa(int(qos)), false)
	}
}

// A modelWill is a Will. It is opened when its CONNACK has come.
type modelWill struct {
	*modelMessage
	delay time.Duration
	due   time.Time // once the connection has ended
	stays bool      // it is durable. Where the Session is not, there may have been no room for it
}

// makeWill returns the Will for a connection that is about to be opened.
func (c *modelClient) makeWill() *packets.Will {
	qos := packets.QoS(1 + c.w.rnd.IntN(2))
	m := c.w.message(c.id, "w/"+c.id, qos, c.w.rnd.IntN(2) == 0)
	m.sends = 1
	m.will = true
	c.will = &modelWill{modelMessage: m}
	w := &packets.Will{Topic: m.topic, QoS: qos, Retain: m.retain, Payload: []byte(m.payload)}
	if c.version == packets.V5 && c.w.rnd.IntN(2) == 0 {
		c.will.delay = time.Duration(1+c.w.rnd.IntN(6)) * time.Second
		seconds := uint32(c.will.delay / time.Second)
		w.Properties = packets.Properties(nil).AppendUint(packets.WillDelayInterval, seconds)
	}
	return w
}
