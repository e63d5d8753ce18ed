package mqtttest_test

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/trace"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// report makes a capture of two clients and returns its file.
func report(t *testing.T, f trace.Format) (name string) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		early := b.Client(t, "early") // was there before the trace
		early.Send(subscribing(1, "late/#"))
		early.WantType("granted", packets.TypeSuback)
		r := trace.New(b.Broker(), trace.Options{Dir: dir})
		x, err := r.Start(t.Context(), "report", f, hooks.TapOptions{})
		require.NoError(t, err)
		name = x.Files()[0]
		c := b.Client(t, "c", func(p *packets.Connect) {
			p.Username, p.Password = "u",
				[]byte("secret")
		})
		c.Send(subscribing(1, "a/#"))
		c.WantType("granted", packets.TypeSuback)
		time.Sleep(time.Hour)
		c.Send(&packets.Publish{QoS: 1, PacketID: 3, Topic: []byte("a/b"), Payload: []byte("x")})
		c.Want("the message", &packets.Publish{QoS: 1, PacketID: 1, Topic: []byte("a/b"),
			Payload: []byte("x")})
		c.Want("the answer", &packets.Ack{Kind: packets.TypePuback, PacketID: 3})
		c.Send(&packets.Ack{Kind: packets.TypePuback, PacketID: 1})
		early.Send(new(packets.Pingreq))
		early.WantType("an answer", packets.TypePingresp)
		c.Disconnect()
		synctest.Wait()
		r.Close()
	})
	return name
}

func subscribing(id uint16, filter string) *packets.Subscribe {
	return &packets.Subscribe{PacketID: id, Subscriptions: []packets.Subscription{{Filter: filter,
		QoS: 1}}}
}

func TestACaptureIsPlayed(t *testing.T) {
	for _, format := range []trace.Format{trace.FormatJSON, trace.FormatPCAPNG} {
		t.Run(format.String(), func(t *testing.T) {
			name := report(t, format)
			text, err := os.ReadFile(name)
			require.NoError(t, err)
			require.NotContains(t, string(text), "secret")
			f, err := os.Open(name)
			require.NoError(t, err)
			defer f.Close()
			synctest.Test(t, func(t *testing.T) {
				b := mqtttest.NewBroker(t)
				began := time.Now()
				played := b.Replay(t, trace.Read(f))
				require.GreaterOrEqual(t, time.Since(began), time.Hour, "at the same distances")
				require.Empty(t, played.Differences())
				require.Len(t, played.Sent("c"), 4)
				b.WaitFor(t, "a/b", mqtttest.Payload("x"))
			})
		})
	}
}

// A broker that does something else is found out.
func TestAReplayShowsWhatDiffers(t *testing.T) {
	f, err := os.Open(report(t, trace.FormatJSON))
	require.NoError(t, err)
	defer f.Close()
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t)
		b.Inject(mqtttest.Drop(mqtttest.ToClient, packets.TypePublish, 1))
		got := b.Replay(t, trace.Read(f)).Differences()
		require.Len(t, got, 1)
		require.True(t, strings.HasPrefix(got[0], `client "c", packet 3: the capture has PUBLISH`),
			got[0])
	})
}
