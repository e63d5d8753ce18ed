package dunlin_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// sysTopics returns the values below $SYS/broker/.
func sysTopics(b *dunlin.Broker) map[string]string {
	all := make(map[string]string)
	for m := range b.Retained("$SYS/broker/#") {
		all[strings.TrimPrefix(m.Topic, "$SYS/broker/")] = string(m.Payload)
	}
	return all
}

// docs/operations.md lists every $SYS topic, and no other.
func TestThePageListsTheSysTopics(t *testing.T) {
	page, err := os.ReadFile("docs/operations.md")
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(page), "| Topic below `$SYS/broker/` | What it is |\n")
	require.True(t, ok)
	table, _, _ = strings.Cut(table, "\n\n")
	var told []string
	for row := range strings.Lines(table) {
		names, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " | ")
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(names, -1) {
			if strings.HasPrefix(name[1], "load/") {
				told = append(told, name[1]+"/1min", name[1]+"/5min", name[1]+"/15min")
			} else {
				told = append(told, name[1])
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) { c.SysInterval = time.Second }))
		time.Sleep(2 * time.Second)
		var there []string
		for name := range sysTopics(b.Broker()) {
			there = append(there, name)
		}
		slices.Sort(there)
		slices.Sort(told)
		require.Equal(t, there, told)
	})
}

// The numbers of $SYS are those of what has happened.
func TestSysTopicsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) { c.SysInterval = time.Minute }))
		c := b.Client(t, "c1")               // CONNECT, CONNACK
		c.Send(subscribeTo(1, "a"))          // SUBSCRIBE
		c.WantType("", packets.TypeSuback)   // SUBACK
		c.Send(subscribeTo(2, "$share/g/b")) // SUBSCRIBE
		c.WantType("", packets.TypeSuback)
		c.Send(&packets.Publish{Topic: []byte("a"), QoS: 2, PacketID: 1, Payload: []byte("12345")})
		c.WantType("PUBREC, and the PUBLISH at QoS 1", packets.TypePublish)
		c.WantType("", packets.TypePubrec)
		c.Send(&packets.Ack{Kind: packets.TypePubrel, PacketID: 1}, &packets.Ack{Kind: packets.TypePuback, PacketID: 1})
		c.WantType("", packets.TypePubcomp)
		away := b.Client(t, "away", func(p *packets.Connect) {
			p.Properties = p.Properties.AppendUint(packets.SessionExpiryInterval, 30)
		}) // CONNECT, CONNACK
		away.Disconnect() // DISCONNECT
		c.Send(&packets.Pingreq{})
		c.WantType("", packets.TypePingresp)
		time.Sleep(2 * time.Minute)
		got := sysTopics(b.Broker())
		for name, want := range map[string]string{
			"messages/received": "9", "messages/sent": "8",
			"publish/messages/received": "1", "publish/messages/sent": "1", "publish/bytes/received": "5", "publish/bytes/sent": "5",
			"publish/messages/dropped": "0", "messages/inflight": "0",
			"clients/connected": "1", "clients/active": "1", "clients/total": "1", "clients/disconnected": "0", "clients/inactive": "0",
			"clients/maximum": "2", "clients/expired": "1", "subscriptions/count": "1", "shared_subscriptions/count": "1",
		} {
			require.Equal(t, want, got[name], name)
		}
		require.Equal(t, got["store/messages/count"], got["retained messages/count"])
		require.NotEqual(t, "0", got["store/messages/bytes"])
		require.Greater(t, got["load/sockets/15min"], "0.00")
	})
}
