package dunlin

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// PublishAs lets through what a client with that identity may publish, and nothing else.
func TestPublishAs(t *testing.T) {
	onStage(t, func(st *stage) {
		var published []hooks.Published
		denied := 0
		st.restart(func(c *Config) {
			c.Authenticator = users(nil)
			c.MaxPacketSize, c.MaxRetainedPerPrincipal = 1000, 1
			c.CheckPayloadFormat = true
			c.Authorizer = hooks.AuthorizerFunc(
				func(_ context.Context, r *hooks.AccessRequest) error {
					if r.Topic == "panic" {
						panic("in the Authorizer")
					}
					if r.Client.Identity.Principal == "u" && r.Topic != "secret" {
						return nil
					}
					return packets.Errorf(packets.NotAuthorized, "no")
				})
			c.Interceptor = hooks.InterceptorFunc(
				func(_ context.Context, _ *hooks.Client, m *packets.Message) (*packets.Message,
					error) {
					switch m.Topic {
					case "drop":
						return nil, hooks.ErrDrop
					case "m/change":
						changed := *m
						changed.Payload = []byte("changed")
						return &changed, nil
					}
					return m, nil
				})
			o := *c.Observer
			o.Published = func(e hooks.Published) { published = append(published, e) }
			o.Denied = func(hooks.Denied) { denied++ }
			c.Observer = &o
		})
		s := st.dial("s", packets.V5, true, 0, named("u"))
		s.want(packets.TypeConnack)
		s.subscribe("#", packets.QoS1)
		u := &hooks.Client{ID: "door", Identity: hooks.Identity{Principal: "u"}}
		as := func(c *hooks.Client, g *hooks.Grant, m Message) (Outcome, error) {
			return st.b.PublishAs(st.t.Context(), Publisher{Client: c, Grant: g}, &m)
		}
		code := func(want ReasonCode, c *hooks.Client, m Message) {
			t.Helper()
			_, err := as(c, nil, m)
			require.Equal(t, want, packets.CodeOf(err), "%v", err)
		}
		out, err := as(u, nil, Message{Topic: "t", Payload: []byte("one"), QoS: 1})
		require.NoError(t, err)
		require.Equal(t, Outcome{Matched: 1}, out)
		mount := &hooks.Grant{MountPoint: "m/"}
		_, err = as(u, mount, Message{Topic: "change", QoS: 1})
		require.NoError(t, err)
		require.Equal(t, []string{"one", "changed"}, s.payloads())
		require.Equal(t, "change", published[1].Topic())
		require.Equal(t, "m/change", published[1].Message.Topic)
		require.Equal(t, u.ID, published[1].Client.ID)
		require.Equal(t, "m/", published[1].Client.MountPoint)
		out, err = as(u, nil, Message{Topic: "drop"})
		require.NoError(t, err)
		require.Zero(t, out)

		other := &hooks.Client{Identity: hooks.Identity{Principal: "other"}}
		code(packets.NotAuthorized, other, Message{Topic: "t"})
		code(packets.NotAuthorized, u, Message{Topic: "secret"})
		code(packets.NotAuthorized, u, Message{Topic: "panic"})
		code(packets.NotAuthorized, u, Message{Topic: "$SYS/x"})
		code(packets.TopicNameInvalid, u, Message{Topic: "a/#"})
		code(packets.PacketTooLarge, u, Message{Topic: "t", Payload: make([]byte, 1000)})
		text := packets.Properties(nil).AppendUint(packets.PayloadFormatIndicator, 1)
		code(packets.PayloadFormatInvalid, u, Message{Topic: "t", Payload: []byte{0xff},
			Properties: text})
		_, err = as(u, &hooks.Grant{Limits: hooks.Limits{MaxQoS: new(packets.QoS0)}},
			Message{Topic: "t", QoS: 1})
		require.Equal(t, packets.QoSNotSupported, packets.CodeOf(err))
		_, err = as(u, &hooks.Grant{MountPoint: "$x"}, Message{Topic: "t"})
		require.Equal(t, packets.NotAuthorized, packets.CodeOf(err))
		require.NotZero(t, denied)
		require.Empty(t, s.payloads(), "nothing of it came")

		kept := Message{Topic: "r/1", Payload: []byte("r"), Retain: true}
		_, err = as(u, nil, kept)
		require.NoError(t, err)
		kept.Topic = "r/2"
		code(packets.QuotaExceeded, u, kept)
		s.got()

		slow := &hooks.Grant{Limits: hooks.Limits{PublishRate: 1}}
		_, err = as(u, slow, Message{Topic: "t"})
		require.NoError(t, err)
		_, err = as(u, slow, Message{Topic: "t"})
		require.Equal(t, packets.QuotaExceeded, packets.CodeOf(err), "the rate")
		time.Sleep(time.Second)
		_, err = as(u, slow, Message{Topic: "t"})
		require.NoError(t, err)
		s.got()

		go func() {
			time.Sleep(time.Second)
			m := s.want(packets.TypePublish)[0].(*packets.Publish)
			s.send(ack(packets.TypePuback, m.PacketID))
		}()
		out, err = st.b.PublishAs(st.t.Context(), Publisher{Client: u, Wait: -1},
			&Message{Topic: "t", QoS: 1})
		require.NoError(t, err)
		require.Equal(t, Outcome{Matched: 1, Acknowledged: 1}, out)

		require.NoError(t, st.b.Ban(Ban{Kind: BanUser, Value: "u"}))
		code(packets.Banned, u, Message{Topic: "t"})
	})
}
