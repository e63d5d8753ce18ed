package main

import (
	"sync"

	"github.com/dunlin-mqtt/dunlin/examples/internal/inband"
	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	maxConnect  = 8 << 10 // bytes of a client's packets before it is let in
	maxSessions = 100_000 // Client Identifiers that are remembered
)

// sessions remembers the clients that had a Session at the broker when they came last. The proxy
// needs this for the CONNACK of a client that publishes its password, which it sends before it asks
// the broker.
type sessions struct {
	mu      sync.Mutex
	present map[string]bool // by Client Identifier; guarded by mu
}

// askedFor says how clients publish their password to a topic.
func askedFor(topic string) *inband.Options {
	s := &sessions{present: make(map[string]bool)}
	return &inband.Options{Topic: topic, MaxConnect: maxConnect, Timeout: connectTimeout,
		Connack: s.greet, Answered: s.answered}
}

// greet fills in the CONNACK that the broker is expected to send.
func (s *sessions) greet(p *packets.Connect, ack *packets.Connack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ack.SessionPresent = !p.CleanStart && s.present[p.ClientID]
	ack.Properties = ack.Properties.AppendUint(packets.ReceiveMaximum, 20) // any broker takes it
}

// answered notes whether the broker had a Session. A client whose CONNACK said something else is
// disconnected, and comes back.
func (s *sessions) answered(clientID string, present bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.present) >= maxSessions {
		clear(s.present)
	}
	if delete(s.present, clientID); present {
		s.present[clientID] = true
	}
}
