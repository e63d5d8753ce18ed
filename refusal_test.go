package dunlin

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A 3.1.1 client has no Reason Code in PUBACK and PUBREC: what it may not publish is acknowledged,
// and anything else that is refused ends the connection, so that the client sends the message
// again.
func TestARefusalThatIsNotFinalDisconnectsAClientThatCannotBeTold(t *testing.T) {
	refusal := errors.New("the database is down")
	for _, tt := range []struct {
		name         string
		err          error
		acknowledged bool
	}{
		{"a decision that it may not", packets.Errorf(packets.NotAuthorized, "no"), true},
		{"no opinion of anybody", hooks.ErrAbstain, true},
		{"a topic that is not accepted", packets.Errorf(packets.TopicNameInvalid, "no"), true},
		{"a payload that is not accepted", packets.Errorf(packets.PayloadFormatInvalid, "no"),
			true},
		{"a hook that has failed", refusal, false},
		{"a quota", packets.Errorf(packets.QuotaExceeded, "later"), false},
		{"a server that is busy", packets.Errorf(packets.ServerBusy, "later"), false},
		{"an error of the hook with a Reason Code",
			packets.Errorf(packets.ImplementationSpecificError, "later"), false},
	} {
		for _, hook := range []string{"Authorizer", "Interceptor"} {
			for _, qos := range []packets.QoS{packets.QoS1, packets.QoS2} {
				t.Run(tt.name+", "+hook, func(t *testing.T) {
					answer := tt.err
					withRules(t, everything, func(c *Config) {
						if hook == "Authorizer" {
							c.Authorizer = hooks.AuthorizerFunc(func(_ context.Context,
								r *hooks.AccessRequest) error {
								if r.Action == hooks.ActionPublish {
									return answer
								}
								return nil
							})
							return
						}
						c.Interceptor = hooks.InterceptorFunc(
							func(_ context.Context, _ *hooks.Client, m *Message) (*Message,
								error) {
								return m, answer
							})
					}, func(r *guardRig) {
						s := r.connect(as("s", "u"))
						s.subscribe("a", 0)
						old := as("c", "u")
						old.Version, old.Properties, old.CleanStart = packets.V311, nil, false
						c := r.connect(old)
						m := &packets.Publish{QoS: qos, PacketID: 1, Topic: []byte("a")}
						c.send(m)
						p, err := c.r.ReadPacket()
						s.nothing("what was refused")
						if tt.acknowledged {
							require.NoError(t, err)
							require.Contains(t, []packets.Type{packets.TypePuback,
								packets.TypePubrec}, p.Type())
							c.close()
							return
						}
						require.Error(t, err, "%v", p)
						answer, m.Dup = nil, true
						c = r.connect(old)
						c.send(m)
						require.IsType(t, &packets.Ack{}, c.recv())
						s.message("a")
						c.close()
					})
				})
			}
		}
	}
}
