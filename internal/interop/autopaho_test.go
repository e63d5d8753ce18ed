package interop

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
)

// autoPaho is github.com/eclipse/paho.golang/autopaho.
type autoPaho struct{}

func (autoPaho) name() string                  { return "autopaho" }
func (autoPaho) versions() []version           { return []version{v5} }
func (autoPaho) prepare() error                { return nil }
func (autoPaho) close()                        {}
func (autoPaho) can(f feature, _ version) bool { return f != canRequest && f != canReceiveAlias }

func (autoPaho) dial(ctx context.Context, o options, in *inbox) (client, error) {
	server, err := url.Parse(fmt.Sprintf("mqtt://127.0.0.1:%d", o.port))
	if err != nil {
		return nil, err
	}
	p := &autoPahoClient{}
	up := make(chan bool, 1)
	cfg := autopaho.ClientConfig{
		ServerUrls:                    []*url.URL{server},
		KeepAlive:                     o.keepAlive,
		CleanStartOnInitialConnection: !o.resume,
		SessionExpiryInterval:         o.expiry,
		ReconnectBackoff:              func(int) time.Duration { return 50 * time.Millisecond },
		ConnectTimeout:                o.patience,
		OnConnectionUp: func(_ *autopaho.ConnectionManager, a *paho.Connack) {
			in.connected()
			select {
			case up <- a.SessionPresent:
			default:
			}
		},
		OnConnectionDown: func() bool {
			in.closed()
			return o.reconnect
		},
		ClientConfig: paho.ClientConfig{
			ClientID: o.clientID,
			OnPublishReceived: []func(paho.PublishReceived) (bool,
				error){func(r paho.PublishReceived) (bool, error) {
				in.received(fromPaho(r.Packet))
				return true, nil
			}},
			OnServerDisconnect: func(d *paho.Disconnect) { in.disconnected(int(d.ReasonCode)) },
		},
	}
	if w := o.will; w != nil {
		cfg.WillMessage = &paho.WillMessage{Topic: w.topic, Payload: []byte(w.payload), QoS: w.qos,
			Retain: w.retain}
		cfg.WillProperties = &paho.WillProperties{User: toPahoUser(w.user),
			ContentType: w.contentType}
		if o.willDelay > 0 {
			cfg.WillProperties.WillDelayInterval = &o.willDelay
		}
	}
	// The manager lives as long as its context, which kill ends.
	life, end := context.WithCancel(context.Background())
	p.end = end
	if p.c, err = autopaho.NewConnection(life, cfg); err != nil {
		end()
		return nil, err
	}
	select {
	case p.present = <-up:
		return p, nil
	case <-ctx.Done():
		end()
		return nil, ctx.Err()
	}
}

// fromPaho translates a received PUBLISH.
func fromPaho(p *paho.Publish) message {
	m := message{topic: p.Topic, payload: string(p.Payload), qos: p.QoS, retain: p.Retain}
	if q := p.Properties; q != nil {
		m.contentType, m.response, m.correlation = q.ContentType, q.ResponseTopic,
			string(q.CorrelationData)
		for _, u := range q.User {
			m.user = append(m.user, [2]string{u.Key, u.Value})
		}
		if q.MessageExpiry != nil {
			m.expiry = *q.MessageExpiry
		}
		if q.SubscriptionIdentifier != nil {
			m.identifiers = []int{*q.SubscriptionIdentifier}
		}
	}
	return m
}

func toPahoUser(user [][2]string) (u paho.UserProperties) {
	for _, kv := range user {
		u.Add(kv[0], kv[1])
	}
	return u
}

type autoPahoClient struct {
	c       *autopaho.ConnectionManager
	end     func()
	present bool
}

func (p *autoPahoClient) session() (present, known bool) { return p.present, true }

func (p *autoPahoClient) subscribe(ctx context.Context, subs ...subscription) ([]byte, error) {
	packet := &paho.Subscribe{}
	for _, s := range subs {
		packet.Subscriptions = append(packet.Subscriptions,
			paho.SubscribeOptions{Topic: s.filter, QoS: s.qos, NoLocal: s.noLocal,
				RetainAsPublished: s.retainAsPublished, RetainHandling: s.retainHandling})
		if s.identifier != 0 {
			packet.Properties = &paho.SubscribeProperties{SubscriptionIdentifier: &s.identifier}
		}
	}
	ack, err := p.c.Subscribe(ctx, packet)
	if ack == nil {
		return nil, err
	}
	return ack.Reasons, nil
}

func (p *autoPahoClient) unsubscribe(ctx context.Context, filters ...string) ([]byte, error) {
	ack, err := p.c.Unsubscribe(ctx, &paho.Unsubscribe{Topics: filters})
	if ack == nil {
		return nil, err
	}
	return ack.Reasons, nil
}

func (p *autoPahoClient) publish(ctx context.Context, ms ...message) error {
	for i, m := range ms {
		packet := &paho.Publish{Topic: m.topic, QoS: m.qos, Retain: m.retain,
			Payload: []byte(m.payload)}
		packet.Properties = &paho.PublishProperties{ContentType: m.contentType,
			ResponseTopic: m.response, User: toPahoUser(m.user)}
		if m.correlation != "" {
			packet.Properties.CorrelationData = []byte(m.correlation)
		}
		if m.expiry > 0 {
			packet.Properties.MessageExpiry = &m.expiry
		}
		if m.alias > 0 {
			packet.Properties.TopicAlias = &m.alias
			if i > 0 {
				packet.Topic = ""
			}
		}
		if _, err := p.c.Publish(ctx, packet); err != nil {
			return err
		}
	}
	return nil
}

func (p *autoPahoClient) disconnect(ctx context.Context) error {
	defer p.end()
	err := p.c.Disconnect(ctx)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (p *autoPahoClient) kill() {
	p.end()
	select {
	case <-p.c.Done():
	case <-time.After(patience):
	}
}
