package dunlin

import (
	"fmt"
	"strings"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is about bridges of other brokers, and about topics that begin with "$". These belong
// to the server, which may let clients publish to some.

// errReserved refuses topics that no client may publish to.
var errReserved = packets.Errorf(packets.NotAuthorized,
	"topics that begin with $ belong to the server")

// reserved says whether a client may not publish to a topic because it begins with "$". The topic
// is without the mount point of the client.
func (b *Broker) reserved(topic string) bool {
	if topic[0] != '$' || bridgeState(topic) {
		return false
	}
	for _, prefix := range b.cfg().SystemTopics {
		if strings.HasPrefix(topic, prefix) {
			return false
		}
	}
	return true
}

// bridgeState says whether topic is where a bridge of Mosquitto publishes its state, as its Will
// among others: $SYS/broker/connection/NAME/state.
func bridgeState(topic string) bool {
	rest, ok := strings.CutPrefix(topic, "$SYS/broker/connection/")
	name, found := strings.CutSuffix(rest, "/state")
	return ok && found && name != "" && !strings.Contains(name, "/")
}

// bridgeInflight is how many QoS 1 and 2 messages a bridge gets at a time. Mosquitto 2.0
// acknowledges QoS 2 messages beyond its max_inflight_messages, 20 by default, and does not deliver
// them. It has no way to tell the number.
const bridgeInflight = 20

// checkSystemTopics checks Config.SystemTopics.
func (c *Config) checkSystemTopics() error {
	for _, p := range c.SystemTopics {
		switch {
		case len(p) < 2 || p[0] != '$' || !packets.ValidTopicName(p):
			return fmt.Errorf(
				"dunlin: Config.SystemTopics: %q is not the beginning of a topic that begins "+
					"with $", p)
		case strings.HasPrefix(p, "$SYS") || strings.HasPrefix(p, "$share") ||
			strings.HasPrefix(localPrefix, p):
			return fmt.Errorf(
				"dunlin: Config.SystemTopics: topics that begin with %q always belong to the "+
					"broker", p)
		}
	}
	return nil
}
