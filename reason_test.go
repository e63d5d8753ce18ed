package dunlin

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// noCode is what comes of a *packets.Error whose Code is forgotten: its value is that of Success.
var noCode = &packets.Error{Reason: "not for you"}

func TestARefusalWithoutCodeNeverReadsAsSuccess(t *testing.T) {
	var denied []error
	refuse := map[string]bool{}
	deny := func(what string) error {
		if refuse[what] {
			return noCode
		}
		return nil
	}
	withRules(t, nil, func(c *Config) {
		c.Authorizer = hooks.AuthorizerFunc(func(_ context.Context, r *hooks.AccessRequest) error {
			if r.Will {
				return deny("will")
			}
			return deny(r.Action.String())
		})
		c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client,
			m *packets.Message) (*packets.Message, error) {
			return m, deny("intercept")
		})
		c.Observer = &hooks.Observer{Denied: func(e hooks.Denied) {
			denied = append(denied,
				e.Err)
		}}
		c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"x": hooks.EnhancedAuthenticatorFunc(
			func(_ context.Context, r *hooks.ConnectRequest) (hooks.Exchange, error) {
				return doneAtOnce{}, deny("auth")
			})}
	}, func(r *guardRig) {
		r.grant = func(*hooks.ConnectRequest) error { return deny("connect") }
		enhanced := as("e", "u")
		enhanced.Properties = enhanced.Properties.AppendText(packets.AuthenticationMethod, "x")
		c, e := r.connect(as("c", "u")), r.connect(enhanced)
		watch := mustSubscribe(r.t, r.b, "#", nil)

		refuse["subscribe"] = true
		require.Equal(t, packets.NotAuthorized, c.subscribe("a", 1), "SUBACK")
		info, _ := r.b.Session("c")
		require.Empty(t, info.Subscriptions)
		require.Equal(t, packets.NotAuthorized, packets.CodeOf(denied[0]),
			"what the Observer is told: %v", denied[0])
		for _, hook := range []string{"publish", "intercept"} {
			refuse[hook] = true
			require.Equal(t, packets.NotAuthorized, c.publish("a", "x", true), "PUBACK")
			c.send(&packets.Publish{QoS: 2, PacketID: 2, Topic: []byte("a")})
			require.Equal(t, packets.NotAuthorized, c.recv().(*packets.Ack).Code, "PUBREC")
			refuse[hook] = false
		}
		synctest.Wait()
		require.Empty(t, unread(watch), "messages that were refused")

		refuse["will"] = true
		p := as("w", "u")
		p.Will = &packets.Will{Topic: "w"}
		r.refused(p, packets.NotAuthorized)
		refuse["auth"] = true
		e.send(&packets.Auth{Code: packets.ReAuthenticate,
			Properties: packets.Properties(nil).AppendText(packets.AuthenticationMethod, "x")})
		require.Equal(t, packets.NotAuthorized, e.recv().(*packets.Disconnect).Code, "AUTH")
		e.close()
		enhanced.ClientID = "f"
		r.refused(enhanced, packets.NotAuthorized)
		refuse["connect"] = true
		r.refused(as("d", "u"), packets.NotAuthorized)
		p = as("old", "u")
		p.Version, p.Properties = packets.V311, nil
		nc, ack := newTestClient(r.t, dial(r.t, r.l), p)
		require.Equal(t, byte(5), ack.Code.ReturnCode(), "3.1.1")
		nc.nc.Close()
		c.close()
	})
}

// An Authenticator that forgets the code refuses like any other: it counts against the address.
func TestARefusalWithoutCodeIsAFailedAuthentication(t *testing.T) {
	withRules(t, nil, func(c *Config) { c.MaxAuthFailures = 2 }, func(r *guardRig) {
		r.grant = func(*hooks.ConnectRequest) error { return noCode }
		for _, want := range []packets.ReasonCode{packets.NotAuthorized, packets.NotAuthorized,
			packets.ConnectionRateExceeded} {
			c, code := r.connectFrom("192.0.2.1", as("c", "u"))
			require.EqualValues(t, want, code)
			c.close()
		}
	})
}

func TestDisconnectHasACodeOfAServer(t *testing.T) {
	for said, sent := range map[packets.ReasonCode]packets.ReasonCode{
		packets.NormalDisconnection:      packets.AdministrativeAction,
		packets.DisconnectWithWill:       packets.AdministrativeAction,
		packets.ContinueAuthentication:   packets.AdministrativeAction,
		packets.ClientIdentifierNotValid: packets.AdministrativeAction, // of CONNACK
		packets.UseAnotherServer:         packets.UseAnotherServer,
		packets.KeepAliveTimeout:         packets.KeepAliveTimeout,
	} {
		withRules(t, nil, nil, func(r *guardRig) {
			c := r.connect(as("c", "u"))
			require.True(t, r.b.Disconnect("c", said))
			require.Equal(t, sent, c.recv().(*packets.Disconnect).Code, "Disconnect with %v", said)
			c.close()
		})
	}
}

func TestAServerReferenceOfAHookReachesAClientThatIsSentElsewhere(t *testing.T) {
	long := strings.Repeat("host ", 40)
	for _, tt := range []struct {
		name, said, want string
		code             packets.ReasonCode
		most             uint32 // Maximum Packet Size
		noReasons        bool
	}{
		{name: "for now", said: "b:1883", want: "b:1883", code: packets.UseAnotherServer},
		{name: "for good", said: "b:1883 c", want: "b:1883 c", code: packets.ServerMoved},
		{name: "without a reference", code: packets.ServerMoved},
		{name: "another code has no reference", said: "b", code: packets.QuotaExceeded},
		{name: "a client that declines Reason Strings gets the reference", said: "b", want: "b",
			code: packets.ServerMoved, noReasons: true},
		{name: "what the client does not accept is left out", said: long,
			code: packets.ServerMoved, most: 100},
		{name: "what the client just accepts is sent", said: long, want: long,
			code: packets.ServerMoved, most: 214},
		{name: "what is not UTF-8 is left out", said: "b\xff", code: packets.ServerMoved},
		{name: "what no packet can hold is left out", said: strings.Repeat("b", 65_536),
			code: packets.ServerMoved},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var refusal error
			auth := hooks.EnhancedAuthenticatorFunc(
				func(context.Context, *hooks.ConnectRequest) (hooks.Exchange, error) {
					return doneAtOnce{}, refusal
				})
			withRules(t, nil, func(c *Config) {
				c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"x": auth}
			}, func(r *guardRig) {
				p := as("c", "u")
				p.Properties = p.Properties.AppendText(packets.AuthenticationMethod, "x")
				if tt.most > 0 {
					p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, tt.most)
				}
				if tt.noReasons {
					p.Properties = p.Properties.AppendUint(packets.RequestProblemInformation, 0)
				}
				c := r.connect(p)
				refusal = &packets.Error{Code: tt.code, ServerReference: tt.said}
				refusal = fmt.Errorf("wrapped: %w", refusal)
				c.send(&packets.Auth{Code: packets.ReAuthenticate,
					Properties: packets.Properties(nil).AppendText(packets.AuthenticationMethod,
						"x")})
				bye := c.recv().(*packets.Disconnect)
				c.close()
				again, ack := newTestClient(t, dial(t, r.l), p)
				again.nc.Close()
				for what, got := range map[packets.ReasonCode]packets.Properties{
					bye.Code: bye.Properties, ack.Code: ack.Properties,
				} {
					to, ok := got.Text(packets.ServerReference)
					require.Equal(t, tt.code, what)
					require.Equal(t, tt.want, to)
					require.Equal(t, tt.want != "", ok)
				}
			})
		})
	}
}

func TestAServerReferenceLeavesTheReasonStringThatStillFits(t *testing.T) {
	withRules(t, nil, nil, func(r *guardRig) {
		moved := &packets.Error{Code: packets.ServerMoved, ServerReference: strings.Repeat("b", 50)}
		moved.Reason = strings.Repeat("r", 50)
		r.grant = func(*hooks.ConnectRequest) error { return moved }
		for most := uint32(5); most < 160; most++ {
			p := as("c", "u")
			p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize, most)
			all := r.heard(p)
			require.Len(t, all, 1)
			require.LessOrEqual(t, len(all[0]), int(most))
			require.Equal(t, most >= 64, strings.Contains(string(all[0]), moved.ServerReference),
				"a Server Reference for a client that accepts %d bytes", most)
			require.Equal(t, most >= 117,
				strings.Contains(string(all[0]), moved.Reason),
				"a Reason String for a client that accepts %d bytes", most)
		}
	})
}

func TestAClientBefore50ThatIsSentElsewhereIsRefusedWithoutAReference(t *testing.T) {
	withRules(t, nil, nil, func(r *guardRig) {
		r.grant = func(*hooks.ConnectRequest) error {
			return &packets.Error{Code: packets.UseAnotherServer, ServerReference: "b:1883"}
		}
		p := as("old", "u")
		p.Version, p.Properties = packets.V311, nil
		sent, err := p.Append(nil, packets.V311)
		require.NoError(t, err)
		nc := dial(r.t, r.l)
		_, err = nc.Write(sent)
		require.NoError(t, err)
		got, err := io.ReadAll(nc)
		require.NoError(t, err)
		require.Equal(t, []byte{0x20, 2, 0, 3}, got,
			"CONNACK with Server unavailable, then the end")
		nc.Close()
	})
}

func TestTextsAreMadeLegible(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"what is a text stays", "no: ж€😀\u00a0", "no: ж€😀\u00a0"},
		{"U+0000", "a\x00b", "a\uFFFDb"},
		{"control characters", "a\r\n\tb\x7f\u0085c", "a   b  c"},
		{"what stands for no character", "a\uFDD0\uFFFE\U0010FFFFb", "a\uFFFD\uFFFD\uFFFDb"},
		{"what is no UTF-8", "a\xff\xed\xa0\x80b\xe2\x82",
			"a\uFFFD\uFFFD\uFFFD\uFFFDb\uFFFD\uFFFD"},
		{"it is cut between characters", strings.Repeat("x", 1022) + "€€",
			strings.Repeat("x", 1022)},
		{"and just fits", strings.Repeat("x", 1021) + "€", strings.Repeat("x", 1021) + "€"},
		{"what it grows by is cut", strings.Repeat("\xff", 70_000), strings.Repeat("\uFFFD", 341)},
	} {
		got := legible(tt.in)
		require.Equal(t, tt.want, got, tt.name)
		require.True(t, utf8.ValidString(got) && len(got) <= maxText, tt.name)
	}
	size := 0
	require.Zero(t, testing.AllocsPerRun(100,
		func() { size += len(legible("an ordinary reason")) }))
	require.NotZero(t, size)
}

// The answer of an Exchange that no packet can hold is its failure, and no silence.
func TestAnExchangeMustFitIntoItsPacket(t *testing.T) {
	var reply []byte
	withRules(t, nil, func(c *Config) {
		c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"x": hooks.EnhancedAuthenticatorFunc(
			func(context.Context, *hooks.ConnectRequest) (hooks.Exchange,
				error) {
				return replies{&reply}, nil
			})}
	}, func(r *guardRig) {
		p := as("c", "u")
		p.Properties = p.Properties.AppendText(packets.AuthenticationMethod, "x")
		c := r.connect(p)
		reply = make([]byte, 65_536)
		c.send(&packets.Auth{Code: packets.ReAuthenticate,
			Properties: packets.Properties(nil).AppendText(packets.AuthenticationMethod, "x")})
		require.Equal(t, packets.NotAuthorized, c.recv().(*packets.Disconnect).Code)
		c.close()
		r.refused(p, packets.NotAuthorized)
	})
}

// replies is an Exchange that is done at once, with an answer.
type replies struct{ data *[]byte }

func (x replies) Next(context.Context, []byte) ([]byte, bool, error) { return *x.data, true, nil }

// What an Interceptor puts in the place of a message is checked like what the program publishes.
func TestAnInterceptorCannotMakeWhatNoPacketMayHave(t *testing.T) {
	for name, props := range map[string]packets.Properties{
		"a text that is not UTF-8": packets.Properties(nil).AppendUser("k", "\xff"),
		"one that is too long": packets.Properties(nil).AppendUser("k",
			strings.Repeat("x", 65_536)),
		"a property that does not travel": packets.Properties(nil).AppendUint(packets.TopicAlias,
			1),
		"a property of another packet": packets.Properties(nil).AppendUint(packets.ReceiveMaximum, 1),
		"properties that end in the midst": packets.Properties(nil).AppendText(packets.ContentType,
			"text")[:4],
	} {
		t.Run(name, func(t *testing.T) {
			withRules(t, []string{"allow all #"}, func(c *Config) {
				c.Interceptor = hooks.InterceptorFunc(func(_ context.Context, _ *hooks.Client,
					m *packets.Message) (*packets.Message, error) {
					out := *m
					out.Properties = props
					return &out, nil
				})
			}, func(r *guardRig) {
				c := r.connect(as("c", "u"))
				c.subscribe("a", 0)
				require.Equal(t, packets.NotAuthorized, c.publish("a", "x", false))
				c.nothing("a message that is none")
				c.close()
			})
		})
	}
}

func TestAnAuthenticatorAddsPropertiesToTheCONNACK(t *testing.T) {
	all := packets.Properties(nil).AppendUser("plan", "paid").AppendText(packets.ReasonString, "hi").
		AppendText(packets.ResponseInformation, "mine/").AppendUser("node", "7")
	asks := packets.Properties(nil).AppendUint(packets.RequestResponseInformation, 1)
	declines := packets.Properties(nil).AppendUint(packets.RequestProblemInformation, 0)
	for _, tt := range []struct {
		name    string
		granted packets.Properties
		connect packets.Properties
		most    int // the client's Maximum Packet Size beyond that of the CONNACK without these
		want    packets.Properties
	}{
		{"in the order of their weight", all, asks, 0, packets.Properties(nil).
			AppendText(packets.ResponseInformation, "mine/").
			AppendText(packets.ReasonString, "hi").
			AppendUser("plan", "paid").AppendUser("node", "7")},
		{"no Response Information for a client that has not asked", all, nil, 0,
			packets.Properties(nil).AppendText(packets.ReasonString, "hi").
				AppendUser("plan", "paid").AppendUser("node", "7")},
		{"no Reason String for a client that has declined it", all, declines, 0,
			packets.Properties(nil).AppendUser("plan", "paid").AppendUser("node", "7")},
		{"the Response Information of Config if the hook has none", nil, asks, 0,
			packets.Properties(nil).AppendText(packets.ResponseInformation, "answers/")},
		{"what the client's Maximum Packet Size has room for", packets.Properties(nil).
			AppendUser("long", strings.Repeat("x", 100)).AppendUser("a", "b"), nil, 60,
			packets.Properties(nil).AppendUser("a", "b")},
		{"nothing if there is room for nothing", all, asks, 7, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withRules(t, nil, func(c *Config) { c.ResponseInformation = "answers/" }, func(r *guardRig) {
				bare, ack := newTestClient(t, dial(t, r.l), as("c", "u"))
				own := ack.Properties
				bare.close()
				r.grant = func(q *hooks.ConnectRequest) error {
					q.Grant.ConnackProperties = tt.granted
					return nil
				}
				p := as("c", "u")
				if p.Properties = tt.connect; tt.most > 0 {
					p.Properties = p.Properties.AppendUint(packets.MaximumPacketSize,
						uint32(ack.Size(packets.V5)+tt.most))
				}
				c, ack := newTestClient(t, dial(t, r.l), p)
				require.Equal(t, packets.Success, ack.Code)
				require.Equal(t, string(append(slices.Clone(own), tt.want...)), string(ack.Properties))
				c.close()
			})
		})
	}
	t.Run("an older client gets none", func(t *testing.T) {
		withRules(t, nil, nil, func(r *guardRig) {
			r.grant = func(q *hooks.ConnectRequest) error {
				q.Grant.ConnackProperties = all
				return nil
			}
			p := as("c", "u")
			p.Version = packets.V311
			r.connect(p).close()
		})
	})
	for name, bad := range map[string]packets.Properties{
		"a property of the broker": packets.Properties(nil).AppendUint(packets.ServerKeepAlive, 1),
		"a property of no CONNACK": packets.Properties(nil).AppendUint(packets.TopicAlias, 1),
		"a Reason String twice": packets.Properties(nil).AppendText(packets.ReasonString, "a").
			AppendText(packets.ReasonString, "b"),
		"a value that is too long":  packets.Properties(nil).AppendUser("a", strings.Repeat("x", 1<<16)),
		"a value that is not UTF-8": packets.Properties(nil).AppendUser("a", "\xff"),
		"bytes that are cut short":  {byte(packets.UserProperty), 0},
	} {
		t.Run(name+" refuses the client", func(t *testing.T) {
			withRules(t, nil, nil, func(r *guardRig) {
				r.grant = func(q *hooks.ConnectRequest) error {
					q.Grant.ConnackProperties = bad
					return nil
				}
				r.refused(as("c", "u"), packets.NotAuthorized)
			})
		})
	}
}

func TestARefusalHasUserProperties(t *testing.T) {
	user := packets.Properties(nil).AppendUser("retry-after", "60").AppendUser("see", "status page")
	for _, tt := range []struct {
		name    string
		said    packets.Properties
		connect packets.Properties
		want    packets.Properties // besides the Reason String "no"
	}{
		{"all", user, nil, user},
		{"for a client that has declined Reason Strings, too", user,
			packets.Properties(nil).AppendUint(packets.RequestProblemInformation, 0), user},
		{"those that its Maximum Packet Size has room for", user,
			packets.Properties(nil).AppendUint(packets.MaximumPacketSize, 40),
			packets.Properties(nil).AppendUser("retry-after", "60")},
		{"of that kind only", packets.Properties(nil).AppendText(packets.ServerReference, "x").
			AppendUser("a", "b"), nil, packets.Properties(nil).AppendUser("a", "b")},
		{"none of a list that no packet can hold", packets.Properties(nil).AppendUser("a", "b").
			AppendUser("a", "\xff"), nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, code := range []packets.ReasonCode{packets.BadUserNameOrPassword, 0} {
				withRules(t, nil, nil, func(r *guardRig) {
					refusal := &packets.Error{Code: code, Reason: "no", UserProperties: tt.said}
					r.grant = func(*hooks.ConnectRequest) error { return refusal }
					p := as("c", "u")
					p.Properties = tt.connect
					c, ack := newTestClient(t, dial(t, r.l), p)
					require.True(t, ack.Code.Failed())
					want := packets.Properties(nil)
					if !tt.connect.Has(packets.RequestProblemInformation) {
						want = want.AppendText(packets.ReasonString, "no")
					}
					require.Equal(t, string(append(want, tt.want...)), string(ack.Properties))
					c.nc.Close()
				})
			}
		})
	}
}
