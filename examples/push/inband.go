package main

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/examples/internal/inband"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is for clients that publish their token.

const (
	authTopic     = "service/auth"
	inbandPrefix  = "inband/" // of the Client Identifiers at the broker
	inbandTimeout = 10 * time.Second
	maxInband     = 1000 // connections that have not shown their token yet
)

// inbandClients is how Authenticate knows them.
var inbandClients = hooks.Listener{Name: "in-band"}

func (s *service) inband() inband.Options {
	return inband.Options{Topic: authTopic, MaxConnect: maxConnect, Timeout: inbandTimeout,
		Connack: s.greet, MaxAsked: maxInband, Admit: s.broker.Admits}
}

// greet says in the CONNACK what the broker will say.
func (s *service) greet(p *packets.Connect, ack *packets.Connack) {
	if _, ok := s.broker.Session(inbandPrefix + p.ClientID); ok {
		ack.SessionPresent = !p.CleanStart
	}
	for id, n := range map[packets.Property]uint32{packets.ReceiveMaximum: receiveMaximum,
		packets.MaximumPacketSize: maxPacket, packets.RetainAvailable: 0,
		packets.SharedSubscriptionAvailable: 0} {
		ack.Properties = ack.Properties.AppendUint(id, n)
	}
	const most = uint32(maxTTL / time.Second)
	if n, _ := p.Properties.Uint(packets.SessionExpiryInterval); n > most {
		ack.Properties = ack.Properties.AppendUint(packets.SessionExpiryInterval, most)
	}
}
