package dunlin

import (
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/guard"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what is in the events of an Observer.

// A diary keeps every event that an Observer gets, its Message cloned.
type diary struct {
	mu     sync.Mutex
	events []any
}

func (d *diary) observer() *hooks.Observer {
	var o hooks.Observer
	for field, f := range reflect.ValueOf(&o).Elem().Fields() {
		f.Set(reflect.MakeFunc(field.Type, func(args []reflect.Value) []reflect.Value {
			e := reflect.New(args[0].Type()).Elem()
			e.Set(args[0])
			if m := e.FieldByName("Message"); m.IsValid() {
				m.Set(reflect.ValueOf(m.Interface().(*packets.Message).Clone()))
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			d.events = append(d.events, e.Interface())
			return nil
		}))
	}
	return &o
}

// of returns the events of one type about one client.
func of[Event any](d *diary, id string) (all []Event) {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range d.events {
		if e, ok := x.(Event); ok && clientOf(e).ID == id {
			all = append(all, e)
		}
	}
	return all
}

func clientOf(event any) *hooks.Client {
	return reflect.ValueOf(event).FieldByName("Client").Interface().(*hooks.Client)
}

// Each event names its client, and its topic without and with the mount point.
func TestEventsHaveTheSameIdentity(t *testing.T) {
	var d diary
	withRules(t, []string{"allow all on t/#", "allow all on m/#"}, func(c *Config) {
		c.Observer = d.observer()
	}, func(r *guardRig) {
		r.grant = func(q *hooks.ConnectRequest) error {
			if q.Client.Username == "u" {
				q.Grant.MountPoint = "m/"
			}
			return nil
		}
		small := as("s", "u")
		small.Properties = small.Properties.AppendUint(packets.MaximumPacketSize, 200)
		p, s, outside := r.connect(as("p", "u")), r.connect(small), r.connect(as("o", "v"))
		require.Equal(t, packets.GrantedQoS1, s.subscribe("t/#", 1))
		require.Equal(t, packets.Success, s.subscribe("$share/g/t/x", 0))
		require.Equal(t, packets.Success, outside.subscribe("m/t/#", 0))
		p.send(&packets.Publish{Topic: []byte("t/1"), Payload: []byte("first")})
		require.Equal(t, packets.Success, p.publish("t/1", "second", false))
		p.send(&packets.Publish{Topic: []byte("t/2"), Payload: make([]byte, 500)})
		require.Equal(t, packets.NotAuthorized, p.publish("forbidden", "a", false))
		for range 2 {
			s.message("t/1")
			outside.message("m/t/1")
		}
		s.send(&packets.Unsubscribe{PacketID: 3, Filters: []string{"$share/g/t/x"}})
		require.IsType(t, &packets.Unsuback{}, s.recv())
		r.reload("allow all on m/#")
		require.True(t, deletes(t, r.b, "s"))
		synctest.Wait()

		client := of[hooks.Connected](&d, "s")[0].Client
		for _, x := range d.events {
			if c := clientOf(x); c.ID == "s" {
				require.Same(t, client, c, "%T", x)
			}
		}
		published := of[hooks.Published](&d, "p")
		require.Equal(t, hooks.Published{
			Client:  of[hooks.Connected](&d, "p")[0].Client,
			Message: &packets.Message{Topic: "m/t/1", Payload: []byte("first")}, Matched: 2,
		}, published[0])
		require.Equal(t, "t/1", published[0].Topic())
		require.Equal(t, "second", string(published[1].Message.Payload))
		require.Len(t, published, 3)

		got := of[hooks.Delivered](&d, "s")
		require.Len(t, got, 2)
		require.Equal(t, hooks.Delivered{Client: client, Message: published[0].Message}, got[0])
		require.Equal(t, "t/1", got[0].Topic())
		require.Equal(t, packets.QoS1, got[1].QoS)
		require.Equal(t, []hooks.Acknowledged{{Client: client, PacketID: got[1].PacketID}},
			of[hooks.Acknowledged](&d, "s"))
		require.NotZero(t, got[1].PacketID)
		for _, e := range of[hooks.Delivered](&d, "o")[:2] {
			require.Equal(t, []string{"m/t/1", "m/t/1"}, []string{e.Topic(), e.Message.Topic})
		}
		dropped := of[hooks.Dropped](&d, "s")
		require.Equal(t, []hooks.Dropped{{Client: client, Message: published[2].Message,
			Reason: hooks.DropTooLarge}}, dropped)
		require.Equal(t, "t/2", dropped[0].Topic())

		require.Equal(t, []hooks.Subscribed{
			{Client: client, Filter: "t/#", MountedFilter: "m/t/#", QoS: 1},
			{Client: client, Filter: "$share/g/t/x", MountedFilter: "$share/g/m/t/x"},
		}, of[hooks.Subscribed](&d, "s"))
		require.Equal(t, []hooks.Unsubscribed{{Client: client, Filter: "$share/g/t/x",
			MountedFilter: "$share/g/m/t/x"}}, of[hooks.Unsubscribed](&d, "s"))
		revoked := of[hooks.Revoked](&d, "s")
		require.Len(t, revoked, 1)
		require.Error(t, revoked[0].Err)
		require.Equal(t, []string{"t/#", "m/t/#"},
			[]string{revoked[0].Filter, revoked[0].MountedFilter})
		refusals := of[hooks.Denied](&d, "p")
		require.Len(t, refusals, 1)
		require.Equal(t, []string{"forbidden", "m/forbidden"},
			[]string{refusals[0].Topic, refusals[0].MountedTopic})
		require.Len(t, of[hooks.SessionEnded](&d, "s"), 1)
	})
}

// A Ban comes as it was made.
func TestABanIsAnEvent(t *testing.T) {
	var d diary
	b := newTestBroker(t, func(c *Config) { c.Observer = d.observer() })
	defer b.Close()
	x := Ban{Kind: BanClient, Value: "c", Reason: "because"}
	require.NoError(t, b.Ban(x))
	require.Equal(t, []any{hooks.Banned{Ban: x}}, d.events)
	require.EqualValues(t, guard.AddressKind, BanAddress, "package guard knows this kind")
}

// An Observer that is told of each message costs no allocation where routing costs none.
func TestMessagesAreObservedWithoutAllocations(t *testing.T) {
	for _, r := range routings {
		t.Run(r.name, func(t *testing.T) {
			pub, message, _ := r.start(t)
			published, delivered, wrong := 0, 0, 0
			check := func(topic string, m *packets.Message) {
				if topic != "a/b" || m.Topic != "a/b" || len(m.Payload) != 64 {
					wrong++
				}
			}
			b := pub.c.b
			b.observe(hooks.Observer{
				Published: func(e hooks.Published) {
					published += e.Matched
					check(e.Topic(), e.Message)
				},
				Delivered: func(e hooks.Delivered) {
					delivered++
					check(e.Topic(), e.Message)
				},
			})
			n := testing.AllocsPerRun(200, func() { pub.bytes(message) })
			if n > 0 && !raced() {
				t.Errorf("%v allocations", n)
			}
			require.Equal(t, []int{201 * r.subscribers, 201 * r.subscribers, 0},
				[]int{published, delivered, wrong})
		})
	}
}

// A Message is lent for the time of the call: what an Observer keeps is a Clone, or a string.
func TestWhatAnObserverKeeps(t *testing.T) {
	var messages []*packets.Message
	var topics []string
	b := newTestBroker(t, func(c *Config) {
		c.Observer = &hooks.Observer{Published: func(e hooks.Published) {
			messages, topics = append(messages, e.Message.Clone()), append(topics, e.Topic())
		}}
	})
	defer b.Close()
	pub := newFeed(t, b, &packets.Connect{Version: packets.V311, CleanStart: true, ClientID: "p"})
	want := []string{"a/1", "b/2", "c/3", "a/1", "b/2", "c/3"}
	for _, topic := range want {
		pub.packet(&packets.Publish{Topic: []byte(topic), Payload: []byte(topic)}, packets.V311)
	}
	require.Equal(t, want, topics)
	require.True(t, slices.EqualFunc(messages, want, func(m *packets.Message, topic string) bool {
		return m.Topic == topic && string(m.Payload) == topic
	}), "%v", messages)
}
