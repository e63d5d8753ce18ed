package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks/presence"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestPresenceIsPublished(t *testing.T) {
	for how, suffix := range map[string]string{"events": "/connected", "retained": ""} {
		t.Run(how, func(t *testing.T) {
			addrs, _ := start(t, "-listen", "127.0.0.1:0", "-presence", how)
			watcher, code := connect(t, dial(t, addrs[0]), login{"watcher", "-", "-"})
			require.Equal(t, packets.Success, code)
			watcher.subscribe("$SYS/broker/clients/other/#")
			connect(t, dial(t, addrs[0]), login{"other", "-", "-"})
			m := watcher.want(packets.TypePublish).(*packets.Publish)
			require.Equal(t, "$SYS/broker/clients/other"+suffix, string(m.Topic))
			var e presence.Event
			require.NoError(t, json.Unmarshal(m.Payload, &e))
			require.Equal(t, "connected", e.State)
			require.Equal(t, "other", e.Client)
		})
	}
}

func TestPresenceIsOneOfThree(t *testing.T) {
	_, err := parse([]string{"-presence", "loudly"})
	require.ErrorContains(t, err, `-presence "loudly" is not off, events or retained`)
}
