package dunlin

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Two subscriptions to one filter, one by each side, are read page by page without one coming
// twice.
func TestPagesTellWhoMadeASubscription(t *testing.T) {
	onStage(t, func(st *stage) {
		p, _ := st.comes("s", "u", packets.V5)
		for _, f := range []string{"a", "b"} {
			require.NoError(t, st.b.SubscribeClient(st.t.Context(), "s", served(f, 1)))
			p.subscribe(f, packets.QoS0)
		}
		var got []string
		after := ""
		for more := true; more; {
			more = false
			for cursor, x := range st.b.SubscriptionsFrom("s", after) {
				got = append(got, fmt.Sprint(x.Filter, " ", x.QoS, " ", x.ByServer))
				after, more = cursor, true
				break
			}
		}
		require.Equal(t, []string{"a 1 true", "a 0 false", "b 1 true", "b 0 false"}, got)
	})
}

// Clients come and go while the server subscribes them and takes that back: in the end each has
// what the last call made.
func TestTheServerSubscribesWhileClientsComeAndGo(t *testing.T) {
	onStage(t, func(st *stage) {
		st.cfg.Authenticator = users(map[string][]hooks.Subscription{"s1": {served("t", 0)}})
		st.restart(func(*Config) {})
		done := make(chan struct{})
		for k := range 4 {
			go func() {
				defer func() { done <- struct{}{} }()
				for range 50 {
					switch k {
					case 0:
						st.b.SubscribePrincipal(context.Background(), "u", served("t", 1))
						st.b.UnsubscribePrincipal(context.Background(), "u", "t")
					case 1:
						st.b.SubscribeClient(context.Background(), "s1", served("t", 1))
						st.b.UnsubscribeClient(context.Background(), "s1", "t")
					default:
						nc, err := st.l.Dial()
						if err != nil {
							return
						}
						c := &packets.Connect{Version: packets.V5, CleanStart: k == 2,
							ClientID: fmt.Sprint("s", k-2), HasUsername: true, Username: "u"}
						b, _ := c.Append(nil, packets.V5)
						nc.Write(b)
						nc.Read(make([]byte, 100))
						nc.Close()
					}
				}
			}()
		}
		for range 4 {
			<-done
		}
		ctx := st.t.Context()
		require.NoError(t, st.b.SubscribePrincipal(ctx, "u", served("t", 1)))
		for _, id := range []string{"s0", "s1"} {
			p, _ := st.comes(id, "u", packets.V5)
			st.publish("t", "x")
			require.Equal(t, []string{"x"}, p.payloads(), id)
			p.goes()
		}
		st.b.UnsubscribePrincipal(ctx, "u", "t")
		for _, id := range []string{"s0", "s1"} {
			info, _ := st.b.Session(id)
			want := []packets.Subscription(nil)
			if id == "s1" {
				want = []packets.Subscription{{Filter: "t"}}
			}
			require.Equal(t, want, info.Given, id)
		}
	})
}
