package dunlin

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// What takes long leaves the event loop first. Here it takes for ever: the test holds a lock.
func TestNobodyWaitsForALongTurn(t *testing.T) {
	filters := make([]string, 100)
	list := make([]packets.Subscription, len(filters))
	for i := range filters {
		filters[i] = fmt.Sprint("filter/", i)
		list[i].Filter = filters[i]
	}
	session := func(x *looped, id string) func() {
		x.settle()
		s := x.b.sessionAt(id)
		s.mu.Lock()
		return s.mu.Unlock
	}
	for name, begin := range map[string]func(x *looped, c *testClient) (end func()){
		"a SUBSCRIBE with many filters": func(x *looped, c *testClient) func() {
			end := session(x, "long")
			c.send(&packets.Subscribe{PacketID: 1, Subscriptions: list})
			return end
		},
		"an UNSUBSCRIBE with many filters": func(x *looped, c *testClient) func() {
			end := session(x, "long")
			c.send(&packets.Unsubscribe{PacketID: 1, Filters: filters})
			return end
		},
		"the end of a Session with subscriptions": func(x *looped, c *testClient) func() {
			c.subscribe("x", packets.QoS0)
			x.settle()
			x.b.numbers.Lock()
			c.send(&packets.Disconnect{})
			return x.b.numbers.Unlock
		},
		"many messages for some": func(x *looped, c *testClient) func() {
			const some = manyTargets / 2
			for i := range some {
				x.connect(fmt.Sprint("some", i)).subscribe("some", packets.QoS0)
			}
			x.connect("last").subscribe("last", packets.QoS0)
			end := session(x, "last")
			b := bytes.Repeat([]byte("\x30\x07\x00\x04some\x00"), manyReached/some)
			c.nc.Write(append(b, "\x30\x07\x00\x04last\x00"...))
			return end
		},
	} {
		t.Run(name, func(t *testing.T) {
			onLoops(t, nil, func(x *looped) {
				for i := range 2 * runtime.GOMAXPROCS(0) { // some on each loop
					x.others = append(x.others, x.connect(fmt.Sprint("other", i)))
				}
				end := begin(x, x.connect("long"))
				defer end()
				for range 3 {
					x.settle()
				}
				require.NotEmpty(t, x.others)
			})
		})
	}
}

// settle waits for the turns that the loops are in: a client has its answer before the turn is over.
func (x *looped) settle() {
	for _, c := range x.others {
		c.ping()
	}
}
