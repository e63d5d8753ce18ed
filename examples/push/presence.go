package main

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/dunlin-mqtt/dunlin/hooks/presence"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// presences are the clients that are connected, by their accounts.
type presences struct {
	mu      sync.Mutex
	clients map[string]map[string]bool // guarded by mu
}

// told takes an event of package presence.
func (p *presences) told(_ context.Context, m *packets.Message) error {
	var e presence.Event
	if err := json.Unmarshal(m.Payload, &e); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clients == nil {
		p.clients = make(map[string]map[string]bool)
	}
	of := p.clients[e.User]
	if of == nil {
		of = make(map[string]bool)
		p.clients[e.User] = of
	}
	if e.State == "connected" {
		of[e.Client] = true
	} else if delete(of, e.Client); len(of) == 0 {
		delete(p.clients, e.User)
	}
	return nil
}

// has says whether a client of an account is connected.
func (p *presences) has(account string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.clients[account]) > 0
}
