package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"

	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A question is what the API is asked, as JSON.
type question struct {
	ClientID string `json:"client_id"`
	Username string `json:"username"`
	Password string `json:"password"`
	Address  string `json:"address"`
}

// An answer is what it says with status 200; any other status refuses the client.
type answer struct {
	// Username and Password are for the broker, in place of the client's own. Empty: none.
	Username string `json:"username"`
	Password string `json:"password"`
	// Publish and Subscribe are Topic Filters for what the client may do.
	Publish   []string `json:"publish"`
	Subscribe []string `json:"subscribe"`
}

func admitAll(_ context.Context, c *packets.Connect, _ net.Addr) (*admission, error) {
	c.Properties = c.Properties.Without(nil, packets.TopicAliasMaximum)
	return new(admission), nil
}

// askAPI returns an admit function that asks url.
func askAPI(url string) func(context.Context, *packets.Connect, net.Addr) (*admission, error) {
	client := &http.Client{Timeout: connectTimeout / 2}
	return func(ctx context.Context, c *packets.Connect, addr net.Addr) (*admission, error) {
		body, err := json.Marshal(question{c.ClientID, c.Username, string(c.Password),
			addr.String()})
		if err != nil {
			return nil, err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(r)
		if err != nil {
			return nil, packets.Errorf(packets.ServerUnavailable, "the API does not answer: %v",
				err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, packets.Errorf(packets.NotAuthorized, "the API says %s about %q",
				resp.Status, c.ClientID)
		}
		var a answer
		if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&a); err != nil {
			return nil, packets.Errorf(packets.ServerUnavailable, "the API's answer: %v", err)
		}
		ru := &rules{publish: a.Publish, subscribe: a.Subscribe, refused: make(map[uint16][]int)}
		if w := c.Will; w != nil && !ru.mayPublish(w.Topic) {
			return nil, packets.Errorf(packets.NotAuthorized,
				"the Will Topic %q is not allowed to %q", w.Topic, c.ClientID)
		}
		c.HasUsername, c.Username = a.Username != "", a.Username
		c.HasPassword, c.Password = a.Password != "", []byte(a.Password)
		c.Properties = c.Properties.Without(nil, packets.TopicAliasMaximum)
		return &admission{fromClient: []filter{ru.client}, fromServer: []filter{ru.server}}, nil
	}
}

// rules restrict one client to topics.
type rules struct {
	publish, subscribe []string

	mu sync.Mutex
	// places of refused filters, by the Packet Identifier of a SUBSCRIBE that is under way
	refused map[uint16][]int
}

func (r *rules) mayPublish(topic string) bool {
	return slices.ContainsFunc(r.publish,
		func(f string) bool { return packets.MatchTopic(f, topic) })
}

// maySubscribe says whether everything that filter could match is allowed.
func (r *rules) maySubscribe(filter string) bool {
	_, inner, err := packets.SplitShared(filter)
	return err == nil && slices.ContainsFunc(r.subscribe, func(f string) bool {
		return acl.Contains(f, inner)
	})
}

// client is the filter for what comes from the client.
func (r *rules) client(p packets.Packet, v packets.Version) (on, back packets.Packet, err error) {
	switch p := p.(type) {
	case *packets.Publish:
		if r.mayPublish(string(p.Topic)) {
			return p, nil, nil
		}
		switch {
		case v < packets.V5: // which has no way to say it [v3.1.1 MQTT-3.3.5-2]
			return nil, nil, fmt.Errorf("a publish to %q, which is not allowed", p.Topic)
		case p.QoS == packets.QoS1:
			return nil, &packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID,
				Code: packets.NotAuthorized}, nil
		case p.QoS == packets.QoS2:
			return nil, &packets.Ack{Kind: packets.TypePubrec, PacketID: p.PacketID,
				Code: packets.NotAuthorized}, nil
		}
		return nil, nil, nil
	case *packets.Subscribe:
		return r.onSubscribe(p)
	}
	return p, nil, nil
}

// onSubscribe leaves out the filters that are not allowed. If none is left it answers itself,
// otherwise server completes the broker's answer.
func (r *rules) onSubscribe(p *packets.Subscribe) (on, back packets.Packet, err error) {
	var allowed []packets.Subscription
	var refused []int
	for i, sub := range p.Subscriptions {
		if r.maySubscribe(sub.Filter) {
			allowed = append(allowed, sub)
		} else {
			refused = append(refused, i)
		}
	}
	if len(allowed) == 0 {
		return nil, &packets.Suback{PacketID: p.PacketID,
			Codes: slices.Repeat([]packets.ReasonCode{packets.NotAuthorized}, len(refused))}, nil
	}
	if len(refused) > 0 {
		r.mu.Lock()
		r.refused[p.PacketID] = refused
		r.mu.Unlock()
		p.Subscriptions = allowed
	}
	return p, nil, nil
}

// server is the filter for what comes from the broker.
func (r *rules) server(p packets.Packet, _ packets.Version) (on, back packets.Packet, err error) {
	switch p := p.(type) {
	case *packets.Suback:
		r.mu.Lock()
		refused := r.refused[p.PacketID]
		delete(r.refused, p.PacketID)
		r.mu.Unlock()
		for _, i := range refused {
			p.Codes = slices.Insert(p.Codes, min(i, len(p.Codes)), packets.NotAuthorized)
		}
	case *packets.Publish:
		// A session of the broker may have subscriptions from before the rules were changed.
		if slices.ContainsFunc(r.subscribe, func(f string) bool {
			return packets.MatchTopic(f, string(p.Topic))
		}) {
			return p, nil, nil
		}
		switch p.QoS {
		case packets.QoS1:
			return nil, &packets.Ack{Kind: packets.TypePuback, PacketID: p.PacketID}, nil
		case packets.QoS2:
			return nil, &packets.Ack{Kind: packets.TypePubrec, PacketID: p.PacketID}, nil
		}
		return nil, nil, nil
	}
	return p, nil, nil
}
