package dunlin

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func upper(_ context.Context, m *Incoming) (*Message, error) {
	return &Message{Payload: []byte(strings.ToUpper(string(m.Payload))), QoS: 1}, nil
}

func TestRequestAndRespond(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		_, err := b.Request(t.Context(), "do/upper", nil)
		require.ErrorIs(t, err, ErrNoResponder)
		r, err := b.Respond(t.Context(), "do/+",
			func(ctx context.Context, m *Incoming) (*Message, error) {
				switch m.Topic {
				case "do/fail":
					return nil, errors.New("cannot")
				case "do/panic":
					panic("BUG")
				case "do/nothing":
					return nil, nil
				}
				return upper(ctx, m)
			})
		require.NoError(t, err)
		m, err := b.Request(t.Context(), "do/upper", []byte("abc"))
		require.NoError(t, err)
		require.Equal(t, "ABC", string(m.Payload))
		_, err = b.Request(t.Context(), "do/fail", nil)
		var failed *ResponseError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, "cannot", failed.Reason)
		_, err = b.Request(t.Context(), "do/panic", nil)
		require.ErrorAs(t, err, &failed)
		require.Equal(t, "internal error", failed.Reason,
			"the requester learns nothing of the panic")
		require.EqualValues(t, 1, b.Stats().Panics)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = b.Request(ctx, "do/nothing", nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		_, err = b.RequestMessage(t.Context(), &Message{Topic: "do/upper",
			Properties: packets.Properties(nil).AppendText(packets.ResponseTopic, "r")})
		require.Error(t, err, "the Response Topic is Request's to choose")

		require.NoError(t, r.Close())
		_, err = b.Request(t.Context(), "do/upper", nil)
		require.ErrorIs(t, err, ErrNoResponder)
		require.Zero(t, b.tree.Len(), "requests leave no subscription")
	})
}

func TestRespondersEndWithTheBroker(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		waiting := make(chan struct{})
		_, err := b.Respond(t.Context(), "a",
			func(ctx context.Context, _ *Incoming) (*Message, error) {
				close(waiting)
				<-ctx.Done()
				return nil, ctx.Err()
			})
		require.NoError(t, err)
		mustPublish(t, b, "a", "", 0)
		<-waiting
		b.Close()
		_, err = b.Respond(t.Context(), "a", upper)
		require.ErrorIs(t, err, ErrBrokerClosed)
	})
}

// A client asks as any client of 5.0 does, and answers as well.
func TestRequestsOfAndToClients(t *testing.T) {
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		l, stop := serveMemory(t, b)
		defer stop()
		_, err := b.Respond(t.Context(), "do/upper", upper)
		require.NoError(t, err)
		c, _ := newTestClient(t, dial(t, l), connect("c"))
		c.send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "c/#",
			QoS: 1}, {Filter: "ask"}}})
		c.recv()
		c.send(&packets.Publish{Topic: []byte("do/upper"), Payload: []byte("abc"),
			Properties: packets.Properties(nil).
				AppendText(packets.ResponseTopic, "c/answers").AppendBytes(packets.CorrelationData,
				[]byte("7"))})
		p := c.recv().(*packets.Publish)
		require.Equal(t, "c/answers", string(p.Topic))
		require.Equal(t, "ABC", string(p.Payload))
		data, _ := p.Properties.Bytes(packets.CorrelationData)
		require.Equal(t, "7", string(data))

		type result struct {
			m   *Incoming
			err error
		}
		done := make(chan result, 1)
		go func() {
			m, err := b.Request(t.Context(), "ask", []byte("?"))
			done <- result{m, err}
		}()
		q := c.recv().(*packets.Publish)
		to, _ := q.Properties.Text(packets.ResponseTopic)
		data, _ = q.Properties.Bytes(packets.CorrelationData)
		require.True(t, strings.HasPrefix(to, "response/"), "the Response Topic is %s", to)
		c.send(&packets.Publish{Topic: []byte(to), Payload: []byte("uncorrelated")})
		c.send(&packets.Publish{Topic: []byte(to), Payload: []byte("!"),
			Properties: packets.Properties(nil).AppendBytes(packets.CorrelationData, data)})
		r := <-done
		require.NoError(t, r.err)
		require.Equal(t, "!", string(r.m.Payload))
		require.Equal(t, "c", r.m.Publisher)
	})
}

// A response is the Broker's own publish: nobody may use it to write where he may not.
func TestResponseTopicsAreGuarded(t *testing.T) {
	for _, tt := range []struct {
		name, topic string
		edit        func(*Config)
		answered    bool
	}{
		{"any topic, with everything allowed", "alarm", nil, true},
		{"a topic of the server", "$SYS/broker/version", nil, false},
		{"outside the Response Information", "alarm",
			func(c *Config) { c.ResponseInformation = "answers/" }, false},
		{"within it", "answers/c", func(c *Config) { c.ResponseInformation = "answers/" }, true},
		{"what the client may not read", "alarm", nil, false},
		{"what the client may read", "own", nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			edit := func(c *Config) {
				if tt.edit != nil {
					tt.edit(c)
				}
				if strings.HasPrefix(tt.name, "what") {
					c.Authorizer = hooks.AuthorizerFunc(func(_ context.Context,
						r *hooks.AccessRequest) error {
						if r.Action == hooks.ActionSubscribe && r.Topic != "own" {
							return packets.Errorf(packets.NotAuthorized, "only its own")
						}
						return nil
					})
				}
			}
			inProcess(t, edit, func(t *testing.T, b *Broker) {
				l, stop := serveMemory(t, b)
				defer stop()
				watch := mustSubscribe(t, b, "#", nil)
				require.NoError(t, watch.Add("$SYS/#", nil))
				_, err := b.Respond(t.Context(), "do/upper", upper)
				require.NoError(t, err)
				c, _ := newTestClient(t, dial(t, l), connect("c"))
				c.send(&packets.Publish{Topic: []byte("do/upper"), Payload: []byte("x"),
					Properties: packets.Properties(nil).AppendText(packets.ResponseTopic,
						tt.topic)})
				synctest.Wait()
				want := []string{"x"}
				if tt.answered {
					want = append(want, "X")
				}
				require.ElementsMatch(t, want, unread(watch),
					"in any order: the responder may be faster than who routes the request")
			})
		})
	}
}

// A client with a mount point knows nothing of it, and answers all the same; one with another
// cannot do so in its place.
func TestRequestsOfAndToClientsWithMountPoints(t *testing.T) {
	edit := func(c *Config) {
		c.Authenticator = hooks.AuthenticatorFunc(func(_ context.Context,
			r *hooks.ConnectRequest) error {
			r.Grant.MountPoint = r.Client.Username
			return nil
		})
	}
	for _, tt := range []struct {
		name, mount, filter string
	}{
		{"a mount point of whole levels", "tenants/t1/", "ask"},
		{"one that ends within a level", "t1-", "ask"},
		{"a shared subscription", "tenants/t1/", "$share/g/+"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inProcess(t, edit, func(t *testing.T, b *Broker) {
				l, stop := serveMemory(t, b)
				defer stop()
				one, _ := newTestClient(t, dial(t, l), as("one", tt.mount))
				other, _ := newTestClient(t, dial(t, l), as("other", "tenants/t2/"))
				for _, c := range []*testClient{one, other} {
					c.send(&packets.Subscribe{PacketID: 1,
						Subscriptions: []packets.Subscription{{Filter: tt.filter}}})
					c.recv()
				}
				done := make(chan *Incoming, 1)
				go func() {
					m, err := b.Request(t.Context(), tt.mount+"ask", []byte("?"))
					if err != nil {
						t.Error(err)
					}
					done <- m
				}()
				q := one.recv().(*packets.Publish)
				to, _ := q.Properties.Text(packets.ResponseTopic)
				data, _ := q.Properties.Bytes(packets.CorrelationData)
				for _, c := range []*testClient{other, one} { // the other one has guessed it all
					c.send(&packets.Publish{Topic: []byte(to), Payload: []byte("!"),
						Properties: packets.Properties(nil).AppendBytes(packets.CorrelationData,
							data)})
					synctest.Wait()
				}
				m := <-done
				require.Equal(t, "one", m.Publisher)
				require.Equal(t, tt.mount+to, m.Topic)
				require.Equal(t, 2, b.tree.Len(), "requests leave no subscription")
			})
		})
	}
}

// A handler that fails, or whose response is none, leaves nobody waiting.
func TestARequestIsAnsweredWhateverTheHandlerReturns(t *testing.T) {
	bad := func(p packets.Properties) *Message { return &Message{Properties: p} }
	for _, tt := range []struct {
		name     string
		response *Message
		err      error
		want     string // what the reason contains
	}{
		{"an error of 70,000 bytes", nil, errors.New(strings.Repeat("x", 70_000)),
			strings.Repeat("x", maxText)},
		{"an error that is no text", nil, errors.New("no\x00\xff!"), "no\uFFFD\uFFFD!"},
		{"an error whose text panics", nil, (*packets.Error)(nil), "internal error"},
		{"a QoS that is none", &Message{QoS: 3}, nil, "QoS 3"},
		{"a property of another packet",
			bad(packets.Properties(nil).AppendUint(packets.ReceiveMaximum, 1)), nil,
			"receive-maximum"},
		{"a property that does not exist", bad(packets.Properties{99, 0}), nil, "property 99"},
		{"a text that is not UTF-8", bad(packets.Properties(nil).AppendText(packets.ContentType,
			"\xff")), nil, "not UTF-8"},
		{"a User Property that is too long", bad(packets.Properties(nil).AppendUser("k",
			strings.Repeat("x", 65_536))), nil, "user-property was given a value"},
		{"more than a packet can hold", &Message{Payload: make([]byte, maxPacketSize)}, nil,
			"a message of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inProcess(t, nil, func(t *testing.T, b *Broker) {
				_, err := b.Respond(t.Context(), "do", func(context.Context, *Incoming) (*Message,
					error) {
					return tt.response, tt.err
				})
				require.NoError(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err = b.Request(ctx, "do", nil)
				var failed *ResponseError
				require.ErrorAs(t, err, &failed)
				require.Contains(t, failed.Reason, tt.want)
				require.True(t, utf8.ValidString(failed.Reason) && len(failed.Reason) <= maxText)
			})
		})
	}
	inProcess(t, nil, func(t *testing.T, b *Broker) {
		_, err := b.Respond(t.Context(), "do", nil)
		require.ErrorContains(t, err, "handler is nil")
	})
}

// A client cannot have an answer written outside of its mount point, also when it has left before.
func TestResponsesStayBelowTheMountPoint(t *testing.T) {
	mount := hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		r.Grant.MountPoint = "t/7/"
		return nil
	})
	for _, tt := range []struct {
		name          string
		leave, expiry bool
		want          []string
	}{
		{"of a client that is there", false, false, []string{"t/7/t/8/x"}},
		{"of one that has left its Session", true, true, []string{"t/7/t/8/x"}},
		{"of one that has left nothing", true, false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inProcess(t, func(c *Config) { c.Authenticator = mount },
				func(t *testing.T, b *Broker) {
					l, stop := serveMemory(t, b)
					defer stop()
					left := make(chan struct{})
					r, err := b.Respond(t.Context(), "t/7/ask",
						func(context.Context, *Incoming) (*Message, error) {
							<-left
							return &Message{Payload: []byte("answer")}, nil
						})
					require.NoError(t, err)
					sub := mustSubscribe(t, b, "#", nil)
					p := connect("c1")
					p.Version = packets.V5
					if tt.expiry {
						p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval,
							60)
					}
					c, _ := newTestClient(t, dial(t, l), p)
					c.send(&packets.Publish{Topic: []byte("ask"),
						Properties: packets.Properties(nil).AppendText(packets.ResponseTopic, "t/8/x")})
					synctest.Wait()
					if tt.leave {
						c.send(&packets.Disconnect{})
						synctest.Wait()
					}
					close(left)
					synctest.Wait()
					var got []string
					for m, _ := sub.take(time.Now()); m != nil; m, _ = sub.take(time.Now()) {
						if string(m.Payload) == "answer" {
							got = append(got, m.Topic)
						}
					}
					require.Equal(t, tt.want, got)
					require.NoError(t, r.Close())
				})
		})
	}
}
