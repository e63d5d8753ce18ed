package endtoend

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// doors are what clients can make grow, each with one who does that.
var doors = []struct {
	name string
	open func(x *intruder)
}{
	{"sessions with long names, Wills and properties", (*intruder).sessions},
	{"connections that do nothing", (*intruder).connections},
	{"connections that say nothing, and beginnings of CONNECT", (*intruder).silent},
	{"Topic Aliases and routes", (*intruder).aliases},
	{"filters with wildcards, identifiers and long names", (*intruder).filters},
	{"shared subscriptions", (*intruder).shares},
	{"retained messages", (*intruder).retained},
	{"retained messages still to be sent", (*intruder).cursors},
	{"queued messages", (*intruder).queued},
	{"messages that are not acknowledged", (*intruder).unacknowledged},
	{"QoS 2 identifiers that are not released", (*intruder).received},
	{"QoS 2 deliveries that are not completed", (*intruder).uncompleted},
	{"output that is not read", (*intruder).unread},
	{"packets that come in part", (*intruder).partial},
	{"authentications without end", (*intruder).asked},
	{"failed authentications", (*intruder).failed},
	{"UNSUBSCRIBE and PUBLISH with all that they can hold", (*intruder).lists},
	{"TLS handshakes that do not end", (*intruder).handshakes},
}

// An intruder has many connections. It ends soon when stop is closed.
type intruder struct {
	addr, name string
	overTLS    string // the address for TLS
	stop       chan struct{}
	conns      []*intruderConn
	sent       int // bytes
}

func (x *intruder) stopped() bool {
	select {
	case <-x.stop:
		return true
	default:
		return false
	}
}

func (x *intruder) leave() {
	for _, c := range x.conns {
		c.nc.Close()
	}
}

// An intruderConn is one connection. Errors end what it does.
type intruderConn struct {
	x  *intruder
	nc net.Conn
	r  *packets.Reader
}

func (x *intruder) dial() *intruderConn { return x.dialTo(x.addr) }

func (x *intruder) dialTo(addr string) *intruderConn {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil
	}
	nc.SetDeadline(time.Now().Add(2 * time.Minute))
	c := &intruderConn{x, nc, packets.NewReader(nc, packets.Limits{})}
	c.r.SetVersion(packets.V5)
	x.conns = append(x.conns, c)
	return c
}

// connect returns a connection that was accepted, nil if there is none. Each intruder is a
// principal of its own.
func (x *intruder) connect(edit func(p *packets.Connect)) *intruderConn {
	c := x.dial()
	if c == nil {
		return nil
	}
	p := &packets.Connect{
		Version: packets.V5, ClientID: fmt.Sprint(x.name, "-", len(x.conns)),
		Username: x.name, HasUsername: true,
		Properties: packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 3600),
	}
	edit(p)
	c.send(p)
	if c.want(packets.TypeConnack) != packets.TypeConnack {
		c.nc.Close()
		return nil
	}
	return c
}

// send writes p, and says whether that went well.
func (c *intruderConn) send(p packets.Packet) bool {
	b, err := p.Append(nil, packets.V5)
	if err != nil {
		panic(err)
	}
	return c.write(b)
}

func (c *intruderConn) write(b []byte) bool {
	c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	n, err := c.nc.Write(b)
	c.x.sent += n
	return err == nil && !c.x.stopped()
}

// want reads up to a packet of a type, and returns that, or, if none comes, 0. A CONNACK that
// refuses is none.
func (c *intruderConn) want(kind packets.Type) packets.Type {
	for !c.x.stopped() {
		c.nc.SetReadDeadline(time.Now().Add(5 * time.Second))
		p, err := c.r.ReadPacket()
		if err != nil {
			return 0
		}
		if a, ok := p.(*packets.Connack); ok && a.Code.Failed() {
			return 0
		}
		if p.Type() == kind {
			return kind
		}
	}
	return 0
}

// ignore reads and forgets what comes.
func (c *intruderConn) ignore() { go io.Copy(io.Discard, c.nc) }

func text(n int) string { return strings.Repeat("x", n) }

// all is every property that a PUBLISH can have, each long.
func all() packets.Properties {
	p := packets.Properties(nil).AppendUint(packets.MessageExpiryInterval, 3600).
		AppendText(packets.ContentType, text(2000)).AppendText(packets.ResponseTopic, text(2000)).
		AppendBytes(packets.CorrelationData, make([]byte, 2000))
	for range 20 {
		p = p.AppendUser(text(100), text(100))
	}
	return p
}

func (x *intruder) sessions() {
	for i := 0; !x.stopped() && i < 500; i++ {
		c := x.connect(func(p *packets.Connect) {
			p.ClientID += text(2000)
			p.Properties = p.Properties.AppendUser("k", text(1000))
			p.Will = &packets.Will{Topic: text(1000), Payload: make([]byte, 3000),
				Properties: packets.Properties(nil).AppendUint(packets.WillDelayInterval, 3000)}
		})
		if c != nil {
			c.nc.Close() // without DISCONNECT, so that the Will stays
		}
	}
}

func (x *intruder) connections() {
	for i := 0; !x.stopped() && i < 300; i++ {
		x.connect(func(p *packets.Connect) { p.Properties = nil })
	}
	x.wait(time.Second)
}

func (x *intruder) silent() {
	b := rawConnect(text(8000), 0)
	for i := range 200 {
		if c := x.dial(); c != nil && i%2 == 0 {
			c.write(b[:7000])
		}
	}
	x.wait(2 * time.Second)
}

// wait waits, or until the end.
func (x *intruder) wait(d time.Duration) {
	select {
	case <-x.stop:
	case <-time.After(d):
	}
}

func (x *intruder) aliases() {
	for i := 0; !x.stopped() && i < 50; i++ {
		c := x.connect(func(p *packets.Connect) {
			p.Properties = packets.Properties(nil).AppendUint(packets.TopicAliasMaximum, 65535)
		})
		if c == nil {
			continue
		}
		c.ignore()
		c.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: "al/#"}}})
		for k := range 600 {
			topic := []byte(fmt.Sprint("al/", k%300, "/", text(900)))
			p := &packets.Publish{Topic: topic}
			if k < 32 {
				p.Properties = p.Properties.AppendUint(packets.TopicAlias, uint32(k+1))
				p.Topic = append(topic, text(1000)...)
			}
			if !c.send(p) {
				break
			}
		}
	}
	x.wait(time.Second)
}

func (x *intruder) filters() {
	c := x.connect(func(*packets.Connect) {})
	if c == nil {
		return
	}
	c.ignore()
	id := uint16(0)
	for !x.stopped() {
		id = id%65535 + 1
		s := &packets.Subscribe{PacketID: id,
			Properties: packets.Properties(nil).AppendUint(packets.SubscriptionIdentifier, 7)}
		for k := range 1000 {
			n := int(id)*1000 + k
			filter := fmt.Sprint(x.name, "/", n, strings.Repeat("/+", 30))
			switch k % 3 {
			case 1:
				filter = fmt.Sprint(n, text(200))
			case 2:
				filter = strings.ReplaceAll(strings.ReplaceAll(fmt.Sprintf("%015b", n%32768), "0",
					"a/"), "1", "+/")
			}
			s.Subscriptions = append(s.Subscriptions, packets.Subscription{Filter: filter, QoS: 1})
		}
		if !c.send(s) {
			return
		}
		c.send(&packets.Publish{Topic: []byte(strings.Repeat("a/", 15))})
	}
}

func (x *intruder) shares() {
	c := x.connect(func(*packets.Connect) {})
	if c == nil {
		return
	}
	c.ignore()
	for id := uint16(1); id < 1000 && !x.stopped(); id++ {
		s := &packets.Subscribe{PacketID: id}
		for k := range 200 {
			filter := fmt.Sprint("$share/", text(300), id, "-", k, "/shared/#")
			s.Subscriptions = append(s.Subscriptions, packets.Subscription{Filter: filter, QoS: 2})
		}
		if !c.send(s) || !c.send(&packets.Publish{Topic: []byte("shared/x")}) {
			return
		}
	}
}

func (x *intruder) retained() {
	c := x.connect(func(*packets.Connect) {})
	if c == nil {
		return
	}
	c.ignore()
	for i := 0; !x.stopped(); i++ {
		p := &packets.Publish{Topic: []byte(fmt.Sprint("r/", x.name, i, text(i%500))), Retain: true,
			Payload: make([]byte, 1+i%3*5000), Properties: all()}
		if !c.send(p) {
			return
		}
	}
}

func (x *intruder) cursors() {
	c := x.connect(func(p *packets.Connect) { p.Properties = p.Properties.AppendUint(packets.ReceiveMaximum, 1) })
	if c == nil {
		return
	}
	for i := 1; i < 60000 && !x.stopped(); i++ {
		filter := "r/#"
		if i%2 == 0 {
			filter = fmt.Sprint(i, text(5000), "/#")
		}
		if !c.send(&packets.Subscribe{PacketID: uint16(i),
			Subscriptions: []packets.Subscription{{Filter: filter, QoS: 1}}}) {
			return
		}
	}
}

// absent makes a Session that subscribes and is left.
func (x *intruder) absent(filter string, qos packets.QoS) {
	if c := x.connect(func(*packets.Connect) {}); c != nil {
		c.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: filter, QoS: qos}}})
		c.want(packets.TypeSuback)
		c.send(&packets.Disconnect{})
	}
}

func (x *intruder) queued() {
	for i := range 10 {
		x.absent(fmt.Sprint("q/", x.name, "/", i%3, "/#"), 1)
	}
	c := x.connect(func(*packets.Connect) {})
	if c == nil {
		return
	}
	c.ignore()
	for i := 0; !x.stopped() && i < 100_000; i++ {
		p := &packets.Publish{Topic: []byte(fmt.Sprint("q/", x.name, "/", i%3, "/", text(i%2*500))),
			QoS: 1, PacketID: uint16(i%65535 + 1), Payload: make([]byte, i%4*2000),
			Properties: all()}
		if i%5 == 0 {
			p.Properties = nil
		}
		if !c.send(p) {
			return
		}
	}
}

func (x *intruder) unacknowledged() {
	topic := "u/" + x.name
	for range 5 {
		if c := x.connect(func(*packets.Connect) {}); c != nil {
			c.ignore()
			c.send(&packets.Subscribe{PacketID: 1,
				Subscriptions: []packets.Subscription{{Filter: topic, QoS: 2}}})
		}
	}
	c := x.connect(func(*packets.Connect) {})
	if c == nil {
		return
	}
	c.ignore()
	for i := 0; i < 20_000 && !x.stopped(); i++ {
		if !c.send(&packets.Publish{Topic: []byte(topic), QoS: 1, PacketID: uint16(i + 1),
			Payload: make([]byte, 1000)}) {
			return
		}
	}
}

func (x *intruder) received() {
	id := 0
	for id < 60_000 && !x.stopped() {
		c := x.connect(func(p *packets.Connect) { p.ClientID = x.name })
		if c == nil {
			return
		}
		c.ignore()
		var b bytes.Buffer
		for range 1000 {
			id++
			raw, _ := (&packets.Publish{Topic: []byte("n"), QoS: 2,
				PacketID: uint16(id)}).Append(nil, packets.V5)
			b.Write(raw)
		}
		c.write(b.Bytes())
		c.nc.(*net.TCPConn).CloseWrite()
		x.wait(10 * time.Millisecond)
	}
}

func (x *intruder) uncompleted() {
	topic := "c/" + x.name
	p := x.connect(func(*packets.Connect) {})
	if p == nil {
		return
	}
	p.ignore()
	id := 0
	for range 20 {
		c := x.connect(func(p *packets.Connect) { p.ClientID = x.name })
		if c == nil {
			return
		}
		c.send(&packets.Subscribe{PacketID: 1,
			Subscriptions: []packets.Subscription{{Filter: topic, QoS: 2}}})
		c.want(packets.TypeSuback)
		for range 256 {
			id++
			p.send(&packets.Publish{Topic: []byte(topic), QoS: 2, PacketID: uint16(id)})
			p.send(&packets.Ack{Kind: packets.TypePubrel, PacketID: uint16(id)})
		}
		for !x.stopped() {
			c.nc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			m, err := c.r.ReadPacket()
			if err != nil {
				break
			}
			if m, ok := m.(*packets.Publish); ok {
				c.send(&packets.Ack{Kind: packets.TypePubrec, PacketID: m.PacketID})
			}
		}
		c.nc.Close()
	}
}

func (x *intruder) unread() {
	topic := "o/" + x.name
	for range 20 {
		if c := x.connect(func(*packets.Connect) {}); c != nil {
			c.nc.(*net.TCPConn).SetReadBuffer(4 << 10)
			c.send(&packets.Subscribe{PacketID: 1,
				Subscriptions: []packets.Subscription{{Filter: topic}}})
		}
	}
	c := x.connect(func(*packets.Connect) {})
	if c == nil {
		return
	}
	for range 300 {
		if !c.send(&packets.Publish{Topic: []byte(topic), Payload: make([]byte, 100_000)}) {
			return
		}
	}
}

func (x *intruder) partial() {
	b, _ := (&packets.Publish{Topic: []byte("p"), Payload: make([]byte, 1_000_000)}).Append(nil,
		packets.V5)
	for i := range 40 {
		if x.stopped() {
			return
		}
		if c := x.connect(func(*packets.Connect) {}); c != nil {
			c.write(b[:1+rand.IntN(len(b)-1)>>(i%3*4)])
		}
	}
	x.wait(2 * time.Second)
}

func (x *intruder) asked() {
	ask := func(n int) packets.Properties {
		return packets.Properties(nil).AppendText(packets.AuthenticationMethod, "ask").
			AppendBytes(packets.AuthenticationData, make([]byte, n))
	}
	for i := 0; i < 100 && !x.stopped(); i++ {
		c := x.dial()
		if c == nil {
			continue
		}
		c.send(&packets.Connect{Version: packets.V5, ClientID: text(1000), Properties: ask(6000)})
		for range 5 {
			if c.want(packets.TypeAuth) == 0 ||
				!c.send(&packets.Auth{Code: packets.ContinueAuthentication,
					Properties: ask(7000)}) {
				break
			}
		}
	}
	x.wait(time.Second)
}

func (x *intruder) failed() {
	for i := 0; i < 200 && !x.stopped(); i++ {
		if c := x.dial(); c != nil {
			c.send(&packets.Connect{Version: packets.V5, ClientID: text(100),
				Username: fmt.Sprint("bad", x.name, i, text(7000)), HasUsername: true})
			c.want(packets.TypeConnack)
			c.nc.Close()
		}
	}
}

func (x *intruder) lists() {
	c := x.connect(func(*packets.Connect) {})
	if c == nil {
		return
	}
	c.ignore()
	for id := 1; id < 1000 && !x.stopped(); id++ {
		u := &packets.Unsubscribe{PacketID: uint16(id),
			Properties: packets.Properties(nil).AppendUser("k", text(60_000))}
		for k := range 9000 {
			u.Filters = append(u.Filters, fmt.Sprint(k, "/+/#"))
		}
		p := &packets.Publish{Topic: []byte(text(60_000)), Properties: all()}
		for range 900 {
			p.Properties = p.Properties.AppendUser("k", text(100))
		}
		if !c.send(u) || !c.send(p) {
			return
		}
	}
}

// handshakes begins handshakes with the longest message that TLS takes, and does not end it.
func (x *intruder) handshakes() {
	const record = 1 << 14
	hello := append([]byte{1, 0, 0xFF, 0xF0}, make([]byte, 4*record-100)...)
	var wire []byte
	for len(hello) > 0 {
		n := min(len(hello), record)
		wire = append(wire, 22, 3, 1, byte(n>>8), byte(n))
		wire, hello = append(wire, hello[:n]...), hello[n:]
	}
	for range 300 {
		if c := x.dialTo(x.overTLS); c == nil || !c.write(wire) && x.stopped() {
			return
		}
	}
	x.wait(time.Second)
}
