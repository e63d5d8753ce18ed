package mqtttest_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/trace"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/segment"
	"github.com/stretchr/testify/require"
)

// This file, and the one of the same name in pahotest, is the code of docs/testing.md. It runs.

// Each Go block of the page stands in one of the files, word for word.
func TestThePageIsThisCode(t *testing.T) {
	var code strings.Builder
	for _, name := range []string{"docs_test.go", filepath.Join("pahotest", "docs_test.go")} {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		code.WriteString(dedent(string(text)))
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "testing.md"))
	require.NoError(t, err)
	blocks := strings.Split(string(page), "```go\n")[1:]
	require.NotEmpty(t, blocks)
	for _, b := range blocks {
		b, _, ok := strings.Cut(b, "```")
		require.True(t, ok, "a block does not end: %s", b)
		require.Contains(t, code.String(), dedent(b), "code of docs/testing.md that is in no test:\n%s", b)
	}
}

// dedent takes away how far lines are indented.
func dedent(s string) string {
	var out strings.Builder
	for line := range strings.Lines(s) {
		out.WriteString(strings.TrimLeft(line, "\t "))
	}
	return out.String()
}

func TestRecorder(t *testing.T) {
	b := mqtttest.NewBroker(t)
	c := b.Client(t, "sensor")
	c.Send(
		&packets.Publish{Topic: []byte("sensors/1/temperature"), Payload: []byte("20.5")},
		&packets.Publish{Topic: []byte("sensors/2/temperature"), Payload: []byte("21.5")},
	)

	b.WaitFor(t, "sensors/+/temperature", mqtttest.Payload("21.5"))
	m := b.WaitFor(t, "sensors/#", func(m *dunlin.Message) bool { return m.QoS == 0 })
	require.Equal(t, "sensors/1/temperature", m.Topic)
	require.Len(t, b.Messages("sensors/#"), 2)
}

func TestScript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)

		c := b.Client(t, "c1", func(p *packets.Connect) { p.Version, p.KeepAlive = packets.V311, 60 })
		c.Send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "lamp/#", QoS: 1}}})
		c.Want("the subscription is granted", &packets.Suback{PacketID: 1, Codes: []packets.ReasonCode{packets.GrantedQoS1}})
		b.Publish("lamp/state", "on")
		c.Want("the message arrives", &packets.Publish{QoS: 1, PacketID: 1, Topic: []byte("lamp/state"), Payload: []byte("on")})
		c.WantIdle("it comes once")
		c.Send(&packets.Ack{Kind: packets.TypePuback, PacketID: 1})
		c.Send(&packets.Disconnect{})
		c.WantClosed("the broker closes after DISCONNECT")
	})
}

func TestOnlyAnnReads(t *testing.T) {
	authenticator := hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		if r.Client.Username != "ann" || string(r.Connect.Password) != "secret" {
			return packets.Errorf(packets.BadUserNameOrPassword, "who are you?")
		}
		return nil
	})

	b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
		c.Authenticator = authenticator
	}))
	b.Client(t, "c1", func(p *packets.Connect) { p.Username, p.Password = "ann", []byte("secret") })

	stranger := b.Open(t)
	stranger.Send(&packets.Connect{Version: packets.V5, CleanStart: true, ClientID: "c2"})
	stranger.Want("the stranger is refused", &packets.Connack{Code: packets.BadUserNameOrPassword})
	stranger.WantClosed("the broker closes after the refusal")
}

func TestSessionExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		hourly := func(p *packets.Connect) {
			p.CleanStart = false
			p.Properties = packets.Properties(nil).AppendUint(packets.SessionExpiryInterval, 3600)
		}
		b.Client(t, "c1", hourly).Disconnect()
		time.Sleep(59 * time.Minute)
		c := b.Client(t, "c1", hourly)
		require.True(t, c.Connack.SessionPresent)
		c.Disconnect()
		time.Sleep(61 * time.Minute)
		require.False(t, b.Client(t, "c1", hourly).Connack.SessionPresent)
	})
}

func TestLostAcknowledgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		lost := b.Inject(mqtttest.Drop(mqtttest.ToClient, packets.TypePuback, 1), mqtttest.ForClient("sensor"))

		c := b.Client(t, "sensor")
		p := &packets.Publish{QoS: 1, PacketID: 1, Topic: []byte("a"), Payload: []byte("x")}
		c.Send(p)
		b.WaitFor(t, "a", nil)
		c.WantIdle("the acknowledgement is lost")
		p.Dup = true
		c.Send(p)
		c.WantType("the second one comes", packets.TypePuback)
		require.Equal(t, 1, lost.Hits())
	})
}

func TestReport(t *testing.T) {
	f, err := os.Open(report(t, trace.FormatPCAPNG))
	require.NoError(t, err)
	defer f.Close()
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		played := b.Replay(t, trace.Read(f)) // JSON lines or pcapng
		require.Empty(t, played.Differences(), "the broker answers as the one in the field did")
	})
}

func TestOutage(t *testing.T) {
	b := mqtttest.NewBroker(t)
	c := b.Client(t, "c1")

	b.Stop() // as a crash: no DISCONNECT, and nobody answers any more
	c.WantClosed("the connection breaks off")
	b.Start() // with what had been acknowledged
	b.Client(t, "c1")
	b.Restart()      // both at once
	b.RestartEmpty() // as a broker that has lost its disk
}

func TestOwnConfiguration(t *testing.T) {
	dir := t.TempDir()
	b := mqtttest.NewBroker(t,
		mqtttest.Config(func(c *dunlin.Config) {
			c.MaxQoS = new(packets.QoS) // 0
			c.Interceptor = hooks.InterceptorFunc(upperCase)
		}),
		mqtttest.Store(func() (store.Store, error) { return segment.Open(dir, segment.Options{}) }),
		mqtttest.Timeout(time.Minute),
		mqtttest.Verbose(), // write the packets to the test's output
	)
	b.Client(t, "c1").Send(&packets.Publish{Topic: []byte("a"), Payload: []byte("x")})
	b.WaitFor(t, "a", mqtttest.Payload("X"))
}

func TestExpectedFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		nc, err := b.Dial()
		require.NoError(t, err)
		nc.Write([]byte("GET / HTTP/1.1\r\n\r\n")) // no MQTT
		nc.Read(make([]byte, 1))                   // until it is closed
		nc.Close()

		require.Eventually(t, func() bool { return len(b.Failures()) == 1 }, time.Second, time.Millisecond)
	})
}

func upperCase(_ context.Context, _ *hooks.Client, m *packets.Message) (*packets.Message, error) {
	n := *m
	n.Payload = bytes.ToUpper(m.Payload)
	return &n, nil
}
