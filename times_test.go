package dunlin

import (
	"context"
	"iter"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// This file is about times and numbers that come from elsewhere: each at both of its edges.

// The longest time that a program can name is no short one.
func TestTheLongestMaxMessageExpiryKeepsMessages(t *testing.T) {
	onStage(t, func(st *stage) {
		st.restart(func(c *Config) { c.MaxMessageExpiry = math.MaxInt64 })
		p := st.durable("c", packets.V5)
		p.subscribe("t", packets.QoS1)
		p.nc.Close()
		publisher := st.clean("publisher")
		publisher.send(message2("t", "kept", packets.QoS1, 1))
		publisher.want(packets.TypePuback)
		p = st.dial("c", packets.V5, false, 3600)
		p.want(packets.TypeConnack, packets.TypePublish)
	})
}

func TestTheExpiryOfANamedSubscriptionAtItsEdges(t *testing.T) {
	const week = 7 * 24 * time.Hour
	for _, tt := range []struct {
		most, expiry time.Duration
		want         uint32
	}{
		{week, 0, 7 * 24 * 3600},
		{week, 1, 1},
		{week, time.Second, 1},
		{week, time.Second + 1, 2},
		{week, week - 1, 7 * 24 * 3600},
		{week, math.MaxInt64 - 999_999_999, 7 * 24 * 3600},
		{week, math.MaxInt64, 7 * 24 * 3600},
		{-1, math.MaxInt64, noExpiry},
		{-1, noExpiry*time.Second - 1, noExpiry},
		{-1, (noExpiry - 1) * time.Second, noExpiry - 1},
		{math.MaxInt64, 0, noExpiry},
		{1, math.MaxInt64, 1},
	} {
		b := newTestBroker(t, func(c *Config) { c.MaxSessionExpiry = tt.most })
		require.Equal(t, tt.want, b.localExpiry(tt.expiry), "%v of at most %v", tt.expiry, tt.most)
		b.Close()
	}
}

func TestUnixNanoAtItsEdges(t *testing.T) {
	for _, tt := range []struct {
		at   time.Time
		want int64
	}{
		{time.Unix(0, math.MaxInt64), math.MaxInt64},
		{time.Unix(0, math.MaxInt64).Add(1), math.MaxInt64},
		{time.Unix(0, math.MinInt64), math.MinInt64},
		{time.Unix(0, math.MinInt64).Add(-1), math.MinInt64},
		{time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), math.MaxInt64},
		{time.Time{}, math.MinInt64},
		{time.Unix(12, 34), 12_000_000_034},
		{time.Unix(-12, 34), -11_999_999_966},
	} {
		require.Equal(t, tt.want, unixNano(tt.at), "%v", tt.at)
	}
}

// What is left of a Message Expiry Interval, whatever a Store says when it ends.
func TestWhatIsLeftOfAMessageExpiryInterval(t *testing.T) {
	now := time.Unix(1_800_000_000, 500)
	for expires, want := range map[int64]uint32{
		math.MinInt64:                         0,
		-1:                                    0,
		now.UnixNano():                        0,
		now.UnixNano() + 1:                    1,
		now.Add(7 * time.Second).UnixNano():   7,
		now.Add(7*time.Second).UnixNano() + 1: 8,
		math.MaxInt64:                         noExpiry,
	} {
		m := &message{Expires: expires, Message: packets.Message{Topic: "t"}}
		m.Properties = m.Properties.AppendUint(packets.MessageExpiryInterval, 77)
		b := appendPublish(nil, wire{version: packets.V5}, m.Topic, m.Properties, nil)
		patchExpiry(b, wire{}, len(m.Topic), m, now)
		var p packets.Publish
		h, err := packets.ParseHeader(b, packets.V5)
		require.NoError(t, err)
		require.NoError(t, p.Decode(h, b[h.Len:], packets.V5))
		got, _ := p.Properties.Uint(packets.MessageExpiryInterval)
		require.Equal(t, want, got, "of a message that expires at %d", expires)
	}
}

// oneOperation is a Store that holds one operation behind a Session.
type oneOperation struct {
	store.Store
	op store.Op
}

func (s oneOperation) Load(context.Context) iter.Seq2[store.Op, error] {
	return func(yield func(store.Op, error) bool) {
		session := &store.PutSession{Session: 1, ClientID: "c", Expiry: 3600}
		if yield(session, nil) {
			yield(s.op, nil)
		}
	}
}

func TestAStoreWithAQoSThatIsNoneIsRefused(t *testing.T) {
	m := &message{Message: packets.Message{Topic: "t", QoS: 3, Payload: []byte("x")}}
	fine := &message{Message: packets.Message{Topic: "t", QoS: 2, Payload: []byte("x")}}
	for name, op := range map[string]store.Op{
		"a message": &store.Publish{Message: m},
		"a delivery": &store.Publish{Message: fine,
			To: []store.Delivery{{Session: 1, Seq: 1, QoS: 3}}},
		"a retained message": &store.PutRetained{Message: m},
		"a subscription": &store.PutSubscription{Session: 1, Subscription: packets.Subscription{
			Filter: "t", QoS: 3,
		}},
		"a Will": &store.PutSession{Session: 1, ClientID: "c", Expiry: 3600,
			Will: &store.Will{Message: m.Message}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(Config{Authenticator: hooks.AllowAll, Logger: quiet,
				Store: oneOperation{op: op}})
			require.ErrorContains(t, err, "operation 2: QoS 3, expected at most 2")
		})
	}
}

// Every number of Config may be as large as its type allows: then it bounds nothing.
func TestTheLargestNumbersOfConfigWork(t *testing.T) {
	typ := reflect.TypeFor[Config]()
	n := 0
	for i := range typ.NumField() {
		f := typ.Field(i)
		var most any
		switch {
		case f.Name == "MaxKeepAlive" || f.Name == "MinWildcardLevel": // no limits
			continue
		case f.Type == reflect.TypeFor[time.Duration]():
			most = time.Duration(math.MaxInt64)
		case f.Type.Kind() == reflect.Int:
			most = math.MaxInt
		case f.Type.Kind() == reflect.Float64:
			most = math.MaxFloat64
		default:
			continue
		}
		n++
		t.Run(f.Name, func(t *testing.T) {
			onStage(t, func(st *stage) {
				st.restart(func(c *Config) { reflect.ValueOf(c).Elem().Field(i).Set(reflect.ValueOf(most)) })
				p := st.durable("c", packets.V5)
				p.subscribe("t/+", packets.QoS2)
				p.nc.Close()
				time.Sleep(time.Hour - time.Second)
				other := st.durable("other", packets.V5)
				other.send(toRetain(message2("t/1", "x", packets.QoS1, 1)))
				other.want(packets.TypePuback)
				p = st.dial("c", packets.V5, false, 3600)
				p.want(packets.TypeConnack, packets.TypePublish)
				time.Sleep(time.Hour)
				require.False(t, p.ended())
				require.NoError(t, st.b.Ban(Ban{Kind: BanClient, Value: "c"}))
				require.True(t, p.ended())
			})
		})
	}
	require.Greater(t, n, 25)
}
