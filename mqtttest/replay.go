package mqtttest

import (
	"fmt"
	"iter"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A Replayed is a capture that was played against a broker.
type Replayed struct {
	t     testing.TB
	conns []*replayedConn
}

// A replayedConn is one connection of a capture.
type replayedConn struct {
	id   string
	v    packets.Version
	nc   net.Conn
	want []packets.Packet // what the broker has sent in the capture
	done chan struct{}    // closed when nothing more comes
	more chan struct{}    // capacity 1: something has come
	late bool             // less has come than in the capture

	mu   sync.Mutex
	got  []packets.Packet // and now
	last time.Time        // when the last one came
}

// Replay plays a capture against the broker: it connects as the clients in it did, and sends what
// they sent, at the same distances of time. In a testing/synctest bubble this takes no real
// time. So
// a report from the field becomes a test:
//
//	f, err := os.Open("testdata/report.pcapng")
//	...
//	synctest.Test(t, func(t *testing.T) {
//		b := mqtttest.NewBroker(t)
//		played := b.Replay(t, trace.Read(f))
//		require.Empty(t, played.Differences())
//	})
//
// A connection that was there before the capture begins with a CONNECT that Replay makes up. A
// password in a capture is "***", so the Authenticator of the broker must accept that.
//
// Replay returns when everything was sent and the broker has had a second to answer. The
// connections
// stay open until the test ends, except those that the clients ended in the capture. It fails t if
// the capture cannot be read.
func (b *Broker) Replay(t testing.TB, capture iter.Seq2[hooks.TapPacket, error]) *Replayed {
	t.Helper()
	r := &Replayed{t: t}
	open := map[uint64]*replayedConn{}
	began := time.Now()
	var first, last time.Time
	for p, err := range capture {
		if err != nil {
			t.Fatalf("mqtttest: the capture cannot be read: %v", err)
		}
		if first.IsZero() {
			first = p.Time
		}
		last = p.Time
		if p.Withheld {
			continue // nobody knows the packet
		}
		connect, _ := decode[*packets.Connect](&p)
		c := open[p.Conn]
		if c == nil || connect != nil && p.Incoming {
			c = b.replay(r, &p, connect)
			open[p.Conn] = c
		}
		if !p.Incoming {
			c.expect(&p)
			continue
		}
		time.Sleep(time.Until(began.Add(p.Time.Sub(first))))
		r.await() // it may be an answer to that
		if _, err := c.nc.Write(p.Data); err != nil {
			t.Logf("mqtttest: the broker has closed the connection of %q before it was to get %x",
				c.id, p.Data)
		}
		if _, ends := decode[*packets.Disconnect](&p); ends {
			c.nc.Close()
		}
	}
	time.Sleep(time.Until(began.Add(last.Sub(first))))
	r.settle()
	return r
}

// decode returns the packet of p if it is of a type.
func decode[P packets.Packet](p *hooks.TapPacket) (q P, ok bool) {
	whole, err := p.Packet()
	if err != nil {
		return q, false
	}
	q, ok = whole.(P)
	return q, ok
}

// replay opens the connection that begins with p. connect is nil if that is not its CONNECT.
func (b *Broker) replay(r *Replayed, p *hooks.TapPacket, connect *packets.Connect) *replayedConn {
	r.t.Helper()
	nc, err := b.Dial()
	if err != nil {
		r.t.Fatalf("mqtttest: %v", err)
	}
	c := &replayedConn{id: p.Client.ID, v: p.Version, nc: nc, done: make(chan struct{}),
		more: make(chan struct{}, 1)}
	if connect != nil {
		c.id, c.v = connect.ClientID, connect.Version
	}
	if c.v == 0 {
		c.v = packets.V311
	}
	r.conns = append(r.conns, c)
	r.t.Cleanup(func() { nc.Close(); <-c.done })
	go c.read(time.Now()) // the cleanup waits for it
	if connect == nil {
		made := &packets.Connect{Version: c.v, ClientID: c.id, CleanStart: c.id == "" ||
			p.Client.CleanStart}
		whole, err := made.Append(nil, c.v)
		if err != nil {
			r.t.Fatalf("mqtttest: %v", err)
		}
		nc.Write(whole)
		c.want = append(c.want, nil) // any CONNACK
	}
	return c
}

// expect notes what the broker has sent in the capture.
func (c *replayedConn) expect(p *hooks.TapPacket) {
	if q, err := p.Packet(); err == nil {
		c.want = append(c.want, q)
	}
}

func (c *replayedConn) read(now time.Time) {
	defer close(c.done)
	c.last = now
	r := packets.NewReader(c.nc, packets.Limits{})
	r.SetVersion(c.v)
	for {
		p, err := r.ReadPacket()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.got = append(c.got, p)
		c.last = time.Now()
		c.mu.Unlock()
		select {
		case c.more <- struct{}{}:
		default:
		}
	}
}

// await waits until the clients have got as much as they had in the capture, but not for long.
func (r *Replayed) await() {
	for _, c := range r.conns {
		if c.late {
			continue
		}
		t := time.NewTimer(settleTime)
		for !c.late && c.count() < len(c.want) {
			select {
			case <-c.more:
			case <-c.done:
				c.late = c.count() < len(c.want)
			case <-t.C:
				c.late = true
			}
		}
		t.Stop()
	}
}

func (c *replayedConn) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got)
}

// settleTime is how long the broker has for its last answers.
const settleTime = time.Second

// settle waits until nothing has come for a while.
func (r *Replayed) settle() {
	for end := time.Now().Add(settleTime); ; {
		time.Sleep(time.Until(end))
		for _, c := range r.conns {
			c.mu.Lock()
			if at := c.last.Add(settleTime); at.After(end) {
				end = at
			}
			c.mu.Unlock()
		}
		if !end.After(time.Now()) {
			return
		}
	}
}

// Sent returns what the broker sent to a client, over all its connections.
func (r *Replayed) Sent(clientID string) (all []packets.Packet) {
	for _, c := range r.conns {
		if c.id == clientID {
			c.mu.Lock()
			all = append(all, c.got...)
			c.mu.Unlock()
		}
	}
	return all
}

// Differences compares what the broker sent with what the one in the capture sent, connection by
// connection, as lines of packets.Trace. It returns a line for the first difference of each
// connection. PINGRESP and the order of acknowledgements among messages count as well.
func (r *Replayed) Differences() (all []string) {
	for _, c := range r.conns {
		c.mu.Lock()
		got := slices.Clone(c.got)
		c.mu.Unlock()
		for i := range max(len(got), len(c.want)) {
			is, was := "nothing", "nothing"
			if i < len(got) {
				is = packets.Trace(got[i])
			}
			switch {
			case i >= len(c.want):
			case c.want[i] == nil && i < len(got):
				continue
			case c.want[i] != nil:
				was = packets.Trace(c.want[i])
			}
			if is != was {
				all = append(all, fmt.Sprintf("client %q, packet %d: the capture has %s, the "+
					"broker sent %s",
					c.id, i+1, was, is))
				break
			}
		}
	}
	return all
}
