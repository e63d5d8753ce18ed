package dunlin_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// An end is how a connection ends or is refused, and what Ended says of it.
type end struct {
	config   func(t *testing.T, c *dunlin.Config)
	does     func(s *stage)
	want     hooks.EndCause
	refused  bool
	code     packets.ReasonCode
	nameless bool // no CONNECT has come that could be read
}

func properties(f func(p packets.Properties) packets.Properties) edit {
	return func(c *packets.Connect) { c.Properties = f(c.Properties) }
}

func willed(f func(w *packets.Will)) edit {
	return func(c *packets.Connect) {
		c.Will = &packets.Will{Topic: "w", Payload: []byte("x")}
		f(c.Will)
	}
}

var ends = map[string]end{
	"the client disconnects": {
		does: func(s *stage) { s.connect("c").disconnect() }, want: hooks.EndClient,
	},
	"the client disconnects and asks for its Will": {
		does: func(s *stage) {
			s.connect("c").send(&packets.Disconnect{Code: packets.DisconnectWithWill})
		},
		want: hooks.EndClientWithWill, code: packets.DisconnectWithWill,
	},
	"the client reports a failure": {
		does: func(s *stage) {
			s.connect("c").send(&packets.Disconnect{Code: packets.UnspecifiedError})
		},
		want: hooks.EndClientFailed, code: packets.UnspecifiedError,
	},
	"the client closes the connection": {
		does: func(s *stage) { s.connect("c").nc.Close() },
		want: hooks.EndConnectionLost, code: packets.UnspecifiedError,
	},
	"the client takes nothing": {
		does: func(s *stage) {
			c := s.connect("c").subscribe("a/b", 0)
			c.gate.stop()
			s.publish("a/b", 0)
			s.publish("a/b", 0)
			s.publish("a/b", 0)
			time.Sleep(time.Minute)
		},
		want: hooks.EndWriteFailed, code: packets.UnspecifiedError,
	},
	"nothing comes from the client": {
		does: func(s *stage) {
			s.connect("c", func(c *packets.Connect) { c.KeepAlive = 10 })
			time.Sleep(20 * time.Second)
		},
		want: hooks.EndKeepAlive, code: packets.KeepAliveTimeout,
	},
	"another client has the name": {
		does: func(s *stage) { s.connect("c"); s.connect("c") },
		want: hooks.EndTakenOver, code: packets.SessionTakenOver,
	},
	"the broker is shut down": {
		does: func(s *stage) { s.connect("c"); s.b.Shutdown(s.t.Context()) },
		want: hooks.EndShutdown, code: packets.ServerShuttingDown,
	},
	"the program disconnects the client": {
		does: func(s *stage) { s.connect("c"); s.b.Disconnect("c", packets.AdministrativeAction) },
		want: hooks.EndKicked, code: packets.AdministrativeAction,
	},
	"the program sends the client elsewhere": {
		does: func(s *stage) { s.connect("c"); s.b.Disconnect("c", packets.UseAnotherServer) },
		want: hooks.EndMoved, code: packets.UseAnotherServer,
	},
	"the program deletes the Session": {
		does: func(s *stage) { s.connect("c"); s.b.DeleteSession(s.t.Context(), "c") },
		want: hooks.EndSessionDeleted, code: packets.AdministrativeAction,
	},
	"the client is banned": {
		does: func(s *stage) {
			s.connect("c")
			s.b.Ban(dunlin.Ban{Kind: dunlin.BanClient, Value: "c"})
		},
		want: hooks.EndBanned, code: packets.AdministrativeAction,
	},
	"the authentication expires": {
		config: authenticate(func(r *hooks.ConnectRequest) error {
			r.Grant.Expires = time.Now().Add(time.Minute)
			return nil
		}),
		does: func(s *stage) { s.connect("c"); time.Sleep(2 * time.Minute) },
		want: hooks.EndAuthExpired, code: packets.MaximumConnectTime,
	},
	"the queue is full": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.MaxQueuedMessages, c.MaxInflight, c.Overflow = 1, 1, dunlin.OverflowDisconnect
		},
		does: func(s *stage) {
			c := s.connect("c")
			c.acks = never
			c.subscribe("a/b", 1)
			for range 3 {
				s.publish("a/b", 1)
			}
		},
		want: hooks.EndQueueFull, code: packets.QuotaExceeded,
	},
	"a packet is malformed": {
		does: func(s *stage) { s.connect("c").raw([]byte{0x30, 2, 0, 9}) },
		want: hooks.EndMalformed, code: packets.MalformedPacket,
	},
	"a second CONNECT comes": {
		does: func(s *stage) {
			s.connect("c").send(&packets.Connect{Version: packets.V5, ClientID: "c"})
		},
		want: hooks.EndProtocolError, code: packets.ProtocolError,
	},
	"a packet is too large": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxPacketSize = 1000 },
		does: func(s *stage) {
			s.connect("c").send(&packets.Publish{Topic: []byte("t"), Payload: make([]byte, 2000)})
		},
		want: hooks.EndPacketTooLarge, code: packets.PacketTooLarge,
	},
	"too many messages are open": {
		config: func(_ *testing.T, c *dunlin.Config) { c.ReceiveMaximum = 1 },
		does: func(s *stage) {
			c := s.connect("c")
			c.send(&packets.Publish{QoS: 2, PacketID: 1, Topic: []byte("t")})
			c.send(&packets.Publish{QoS: 2, PacketID: 2, Topic: []byte("t")})
		},
		want: hooks.EndReceiveMaximum, code: packets.ReceiveMaximumExceeded,
	},
	"a Topic Alias is not known": {
		does: func(s *stage) {
			s.connect("c").send(&packets.Publish{
				Properties: packets.Properties(nil).AppendUint(packets.TopicAlias, 60_000),
			})
		},
		want: hooks.EndTopicAlias, code: packets.TopicAliasInvalid,
	},
	"a topic is too deep": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxTopicLevels = 2 },
		does:   func(s *stage) { s.connect("c").send(&packets.Publish{Topic: []byte("a/b/c")}) },
		want:   hooks.EndTopic, code: packets.TopicNameInvalid,
	},
	"retained messages are not accepted": {
		config: func(_ *testing.T, c *dunlin.Config) { c.DisableRetain = true },
		does: func(s *stage) {
			s.connect("c").send(&packets.Publish{Topic: []byte("a"),
				Retain: true})
		},
		want: hooks.EndNotSupported, code: packets.RetainNotSupported,
	},
	"the broker panics": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.Interceptor = hooks.InterceptorFunc(func(context.Context, *hooks.Client,
				*packets.Message) (*packets.Message, error) {
				panic("on purpose")
			})
		},
		does: func(s *stage) { s.connect("c").send(&packets.Publish{Topic: []byte("a")}) },
		want: hooks.EndPanic, code: packets.UnspecifiedError,
	},

	"the address is banned": {
		does: func(s *stage) {
			s.b.Ban(dunlin.Ban{Kind: dunlin.BanAddress, Value: "10.0.0.0/8"})
			s.connect("c")
		},
		want: hooks.EndAddressBanned, refused: true, code: packets.Banned, nameless: true,
	},
	"the address has too many connections": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxConnectionsPerIP = 1 },
		does:   func(s *stage) { s.connect("other"); s.connect("c") },
		want:   hooks.EndAddressLimit, refused: true, code: packets.QuotaExceeded, nameless: true,
	},
	"the broker has too many connections": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxConnections = 1 },
		does:   func(s *stage) { s.connect("other"); s.connect("c") },
		want:   hooks.EndServerBusy, refused: true, code: packets.ServerBusy,
	},
	"no CONNECT comes": {
		does: func(s *stage) { s.pipe(at("10.0.0.1")); time.Sleep(time.Minute) },
		want: hooks.EndNoConnect, refused: true, code: packets.ProtocolError, nameless: true,
	},
	"it is another protocol": {
		does: func(s *stage) { s.pipe(at("10.0.0.1")).raw([]byte("GET / HTTP/1.1\r\n\r\n")) },
		want: hooks.EndNotMQTT, refused: true, code: packets.ProtocolError, nameless: true,
	},
	"the client goes before its CONNECT": {
		does: func(s *stage) { s.pipe(at("10.0.0.1")).nc.Close() },
		want: hooks.EndConnectionLost, refused: true, code: packets.UnspecifiedError,
		nameless: true,
	},
	"the version is not accepted": {
		config: func(_ *testing.T,
			c *dunlin.Config) {
			c.Versions = []packets.Version{packets.V311}
		},
		does: func(s *stage) { s.connect("c") },
		want: hooks.EndVersion, refused: true, code: packets.UnsupportedProtocolVersion,
	},
	"the Client Identifier is reserved": {
		does: func(s *stage) { s.connect("$local/x") },
		want: hooks.EndClientID, refused: true, code: packets.ClientIdentifierNotValid,
	},
	"the Client Identifier belongs to somebody else": {
		config: func(_ *testing.T, c *dunlin.Config) { c.Authenticator = verified },
		does: func(s *stage) {
			s.connect("c", as("alice"), lasting(100))
			s.connect("c", as("bob"))
		},
		want: hooks.EndOtherPrincipal, refused: true, code: packets.ClientIdentifierNotValid,
	},
	"the client is banned before it comes": {
		does: func(s *stage) {
			s.b.Ban(dunlin.Ban{Kind: dunlin.BanClient, Value: "c"})
			s.connect("c")
		},
		want: hooks.EndClientBanned, refused: true, code: packets.Banned,
	},
	"the password is wrong": {
		config: func(_ *testing.T, c *dunlin.Config) { c.Authenticator = verified },
		does:   func(s *stage) { s.connect("c", as("mallory")) },
		want:   hooks.EndBadPassword, refused: true, code: packets.BadUserNameOrPassword,
	},
	"the Authenticator refuses": {
		config: authenticate(func(*hooks.ConnectRequest) error { return hooks.ErrAbstain }),
		does:   func(s *stage) { s.connect("c") },
		want:   hooks.EndNotAuthorized, refused: true, code: packets.NotAuthorized,
	},
	"the Authenticator fails": {
		config: authenticate(func(*hooks.ConnectRequest) error {
			return errors.New("no " +
				"database")
		}),
		does: func(s *stage) { s.connect("c") },
		want: hooks.EndHookFailed, refused: true, code: packets.NotAuthorized,
	},
	"the Authentication Method is not known": {
		does: func(s *stage) {
			s.connect("c", properties(func(p packets.Properties) packets.Properties {
				return p.AppendText(packets.AuthenticationMethod, "magic")
			}))
		},
		want: hooks.EndBadMethod, refused: true, code: packets.BadAuthenticationMethod,
	},
	"too many authentications have failed": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.Authenticator, c.MaxAuthFailures = verified, 1
		},
		does: func(s *stage) {
			s.connect("c", as("mallory"))
			time.Sleep(2 * time.Second)
			s.connect("c", as("mallory"))
		},
		want: hooks.EndSlowedDown, refused: true, code: packets.ConnectionRateExceeded,
	},
	"the Will has too high a QoS": {
		config: func(_ *testing.T, c *dunlin.Config) { q := packets.QoS1; c.MaxQoS = &q },
		does:   func(s *stage) { s.connect("c", willed(func(w *packets.Will) { w.QoS = 2 })) },
		want:   hooks.EndWill, refused: true, code: packets.QoSNotSupported,
	},
	"there are too many Sessions": {
		config: func(_ *testing.T, c *dunlin.Config) { c.MaxSessions = 1 },
		does:   func(s *stage) { s.connect("other"); s.connect("c") },
		want:   hooks.EndTooManySessions, refused: true, code: packets.QuotaExceeded,
	},
	"the principal has too many Sessions": {
		config: func(_ *testing.T, c *dunlin.Config) {
			c.Authenticator, c.MaxSessionsPerPrincipal = verified, 1
		},
		does: func(s *stage) { s.connect("other", as("alice")); s.connect("c", as("alice")) },
		want: hooks.EndPrincipalLimit, refused: true, code: packets.QuotaExceeded,
	},
	"the Store fails": {
		config: withStore,
		does: func(s *stage) {
			s.store.fail(errors.New("the disk is gone"))
			s.connect("c", lasting(100))
		},
		want: hooks.EndStore, refused: true, code: packets.ImplementationSpecificError,
	},
}

func authenticate(f func(r *hooks.ConnectRequest) error) func(t *testing.T, c *dunlin.Config) {
	return func(_ *testing.T, c *dunlin.Config) {
		c.Authenticator = hooks.AuthenticatorFunc(
			func(_ context.Context, r *hooks.ConnectRequest) error { return f(r) })
	}
}

func TestEndedNamesTheCause(t *testing.T) {
	for name, x := range ends {
		t.Run(name, func(t *testing.T) {
			onStage(t, x.config, func(s *stage) {
				t, began := s.t, time.Now()
				x.does(s)
				time.Sleep(5 * time.Second) // the broker lets clients read its last words
				synctest.Wait()
				all := s.b.Ended("")
				require.NotEmpty(t, all)
				got := all[0]
				t.Log(got.Cause, got.Err)
				require.Equal(t, x.want.String(), got.Cause.String(), got.Err)
				require.Equal(t, x.refused, got.Refused)
				require.Equal(t, x.code, got.Code)
				require.Equal(t, "10.0.0.1:4000", got.Address)
				require.False(t, got.EndedAt.Before(began))
				if x.nameless {
					require.Empty(t, got.ClientID)
				} else {
					require.NotEmpty(t, got.ClientID)
					require.Equal(t, all[:1], s.b.Ended(got.ClientID)[:1])
				}
				if !x.refused {
					require.False(t, got.ConnectedAt.IsZero())
				}
			})
		})
	}
}

func TestManyCausesOfEndsAreTried(t *testing.T) {
	ended, refused := map[hooks.EndCause]bool{}, map[hooks.EndCause]bool{}
	for _, x := range ends {
		if x.refused {
			refused[x.want] = true
		} else {
			ended[x.want] = true
		}
	}
	require.GreaterOrEqual(t, len(ended), 20)
	require.GreaterOrEqual(t, len(refused), 15)
}

// A listener has a limit of its own, and its name is remembered.
func TestAListenerThatIsFull(t *testing.T) {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Logger: quietly})
	require.NoError(t, err)
	defer b.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go b.ServeListener(l, &hooks.Listener{Name: "door", MaxConnections: 1})
	for range 2 {
		nc, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer nc.Close()
	}
	for len(b.Ended("")) == 0 {
		runtime.Gosched() // until it is refused
	}
	got := b.Ended("")[0]
	require.Equal(t, hooks.EndListenerFull, got.Cause)
	require.Equal(t, "door", got.Listener)
	require.True(t, got.Refused)
}

func TestLastDropsSayWhatWasLostForWhom(t *testing.T) {
	onStage(t, func(_ *testing.T, c *dunlin.Config) {
		c.MaxQueuedMessages, c.Overflow, c.MaxDrops = 1, dunlin.OverflowDropNewest, 3
	}, func(s *stage) {
		t := s.t
		s.connect("c", lasting(100)).subscribe("#", 1).disconnect()
		require.Empty(t, s.b.LastDrops())
		for range 3 {
			s.publish("a/b", 1)
		}
		all := s.b.LastDrops()
		require.Len(t, all, 1)
		now := time.Now()
		require.Equal(t, dunlin.Drop{Time: now, First: now, Count: 2, ClientID: "c", Topic: "a/b",
			Reason: hooks.DropQueueFull}, all[0])
		for i := range 10 {
			s.publish(strings.Repeat("x", i+1), 1)
		}
		require.Len(t, s.b.LastDrops(), 3, "MaxDrops")
	})
}

// A Tap shows both directions, from the CONNECT to the end, and no password.
func TestATapOfABroker(t *testing.T) {
	onStage(t, func(_ *testing.T, c *dunlin.Config) { c.Authenticator = verified }, func(s *stage) {
		t := s.t
		tap, err := s.b.Tap(s.t.Context(), dunlin.TapOptions{ClientID: "c"})
		require.NoError(t, err)
		mounted, err := s.b.Tap(s.t.Context(), dunlin.TapOptions{Filter: "tenants/+/a/b"})
		require.NoError(t, err)
		s.connect("other").send(&packets.Publish{Topic: []byte("a/b"), Payload: []byte("no")})
		c := s.connect("c", as("tenant"), func(c *packets.Connect) {
			c.HasPassword, c.Password = true, []byte("secret")
		}).subscribe("a/#", 1)
		c.send(&packets.Publish{Topic: []byte("a/b"), Payload: []byte("yes")})
		c.disconnect()
		tap.Stop()
		mounted.Stop()
		var seen []string
		for p := range tap.Packets() {
			require.NotContains(t, string(p.Data), "secret")
			require.Equal(t, "c", p.Client.ID)
			require.EqualValues(t, 2, p.Conn, "it is the second connection")
			q, err := p.Packet()
			require.NoError(t, err)
			way := "<"
			if p.Incoming {
				way = ">"
			}
			seen = append(seen, way+strings.Fields(packets.Trace(q))[0])
		}
		require.Equal(t, []string{">CONNECT", "<CONNACK", ">SUBSCRIBE", "<SUBACK", ">PUBLISH",
			"<PUBLISH",
			">DISCONNECT"}, seen)
		n := 0
		for range mounted.Packets() {
			n++
		}
		require.Equal(t, 2, n, "in and out, and not the one without the mount point")
		s.b.Close()
		_, err = s.b.Tap(s.t.Context(), dunlin.TapOptions{})
		require.ErrorIs(t, err, dunlin.ErrBrokerClosed)
	})
}

// What a client that is refused has sent and got is shown as well.
func TestATapOfARefusal(t *testing.T) {
	onStage(t, func(_ *testing.T, c *dunlin.Config) { c.Authenticator = verified }, func(s *stage) {
		t := s.t
		tap, err := s.b.Tap(s.t.Context(), dunlin.TapOptions{Address: "10.0.0.0/8"})
		require.NoError(t, err)
		s.connect("c", as("mallory"))
		time.Sleep(5 * time.Second)
		s.connectFrom(at("192.168.0.1"), "d")
		tap.Stop()
		n := 0
		for p := range tap.Packets() {
			n++
			require.Equal(t, "c", p.Client.ID)
		}
		require.Equal(t, 2, n)
	})
}
