package dunlin

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/given"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is what an Authenticator granted, held to the same rules as Config: what makes no sense
// refuses the client, what goes beyond what a packet can say is the most that it can say, and zero
// and negative limits leave each as Config has it.

// checkGrant says what makes no sense in g.
func (b *Broker) checkGrant(g *hooks.Grant) error {
	for _, x := range [...]struct {
		name string
		rate float64
	}{{"PublishRate", g.Limits.PublishRate}, {"PublishBytes", g.Limits.PublishBytes}} {
		if math.IsNaN(x.rate) || math.IsInf(x.rate, 0) {
			return fmt.Errorf("the Authenticator granted the %s %v, which is no rate", x.name,
				x.rate)
		}
	}
	if id := g.ClientID; len(id) > math.MaxUint16 || !packets.ValidUTF8(id) || strings.HasPrefix(id,
		localPrefix) {
		return fmt.Errorf("the Authenticator granted the Client Identifier %q, which no client "+
			"can have", cut(id, maxName))
	}
	if err := b.givenLimits().Check(g.Subscriptions); err != nil {
		return fmt.Errorf("the Authenticator granted a subscription that is not possible: %v", err)
	}
	if err := checkConnack(g.ConnackProperties); err != nil {
		return fmt.Errorf("the Authenticator granted ConnackProperties that are not possible: %v",
			err)
	}
	m := g.MountPoint
	if m != "" && (!packets.ValidTopicName(m) || m[0] == '$' || len(m) > b.cfg().MaxTopicLength/2) {
		return fmt.Errorf(
			"the Authenticator granted the mount point %q, which no Topic Name of a client can "+
				"begin with", cut(m, maxName))
	}
	return nil
}

// checkConnack returns an error if p has a property that a hook cannot put into a CONNACK.
func checkConnack(p packets.Properties) error {
	for id := range p.All() {
		switch id {
		case packets.ReasonString, packets.ResponseInformation, packets.UserProperty:
		default:
			return fmt.Errorf(
				"%v, expected reason-string, response-information or user-property", id)
		}
	}
	return p.Check(packets.TypeConnack)
}

// addGranted appends optional properties to those of a CONNACK, as far as there is room: Response
// Information, and the other properties that the Authenticator granted.
func (c *conn) addGranted(
	q packets.Properties, p *packets.Connect, g *hooks.Grant,
) packets.Properties {
	if c.version != packets.V5 {
		return q
	}
	const used = 5 // of a CONNACK without properties
	if n, _ := p.Properties.Uint(packets.RequestResponseInformation); n == 1 {
		info := g.ConnackProperties
		if s := c.b.cfg().ResponseInformation; s != "" && !info.Has(packets.ResponseInformation) {
			info = packets.Properties(nil).AppendText(packets.ResponseInformation, s)
		}
		q = c.addProperties(q, used, info, packets.ResponseInformation)
	}
	if !c.noReasons {
		q = c.addProperties(q, used, g.ConnackProperties, packets.ReasonString)
	}
	return c.addProperties(q, used, g.ConnackProperties, packets.UserProperty)
}

// givenLimits bound the filters of subscriptions that the server makes.
func (b *Broker) givenLimits() given.Limits {
	c := b.cfg()
	return given.Limits{Length: c.MaxTopicLength, Levels: c.MaxTopicLevels,
		WildcardLevels: c.MaxWildcardLevels}
}

// maxSaid is the highest Maximum Packet Size that every client library takes: the largest Remaining
// Length. Packets have up to five bytes more.
const maxSaid = 268_435_455

// lower applies the limits that the Authenticator set.
func (c *conn) lower(l *hooks.Limits) {
	cfg := c.b.cfg()
	c.packetSize, c.receiveMaximum = int32(cfg.MaxPacketSize), uint16(cfg.ReceiveMaximum)
	if l.PacketSize > 0 {
		c.packetSize = min(c.packetSize, int32(min(l.PacketSize, maxPacketSize)))
	}
	if c.packetSize > maxSaid { // and is not told, so that it must not be a limit
		c.packetSize = maxPacketSize
	}
	if l.ReceiveMaximum > 0 {
		c.receiveMaximum = min(c.receiveMaximum, l.ReceiveMaximum)
	}
	c.maxQoS, c.aliasesIn = cfg.maxQoS(), uint16(cfg.TopicAliasMaximum)
	if l.MaxQoS != nil {
		c.maxQoS = min(c.maxQoS, *l.MaxQoS)
	}
	if l.TopicAliasMaximum > 0 {
		c.aliasesIn = min(c.aliasesIn, l.TopicAliasMaximum)
	}
	if l.DisableTopicAlias {
		c.aliasesIn = 0
	}
}

func (b *Broker) queueLimits(l *hooks.Limits) queueLimits {
	q := queueLimits{b.cfg().MaxQueuedBytes, int32(b.cfg().MaxQueuedMessages), b.cfg().Overflow}
	if l.QueuedMessages > 0 {
		q.messages = int32(min(int(q.messages), l.QueuedMessages))
	}
	if l.QueuedBytes > 0 {
		q.bytes = min(q.bytes, l.QueuedBytes)
	}
	return q
}

// askedExpiry is the Session Expiry Interval that a client asks for (3.1.2.11.2).
func askedExpiry(p *packets.Connect) (asked uint32) {
	if p.Version == packets.V5 {
		asked, _ = p.Properties.Uint(packets.SessionExpiryInterval)
	} else if !p.CleanStart {
		asked = noExpiry
	}
	return asked
}

// negotiateKeepAlive sets the time after which silence ends the connection and returns the Keep
// Alive in force, in seconds.
func (c *conn) negotiateKeepAlive(p *packets.Connect, g *hooks.Grant) uint16 {
	most := c.b.cfg().MaxKeepAlive
	if d := g.Limits.KeepAlive; d > 0 && (most == 0 || d < most) {
		most = min(d, math.MaxUint16*time.Second)
	}
	k := time.Duration(p.KeepAlive) * time.Second
	if most > 0 && (k == 0 || k > most) {
		k = max(most.Truncate(time.Second), time.Second)
	}
	c.keepAlive = k + k/2
	return uint16(k / time.Second)
}
