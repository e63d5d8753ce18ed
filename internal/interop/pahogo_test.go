package interop

import (
	"context"
	"errors"
	"fmt"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// pahoGo is github.com/eclipse/paho.mqtt.golang.
type pahoGo struct{}

func (pahoGo) name() string        { return "paho.mqtt.golang" }
func (pahoGo) versions() []version { return []version{v31, v311} }
func (pahoGo) prepare() error      { return nil }
func (pahoGo) close()              {}

func (pahoGo) can(f feature, _ version) bool {
	switch f {
	case canAwaitLoss, canReconnect, canUnsubscribe, canKeepAlive:
		return true
	}
	return false
}

func (pahoGo) dial(ctx context.Context, o options, in *inbox) (client, error) {
	c := mqtt.NewClientOptions().
		AddBroker(fmt.Sprintf("tcp://127.0.0.1:%d", o.port)).
		SetProtocolVersion(uint(o.version)).
		SetClientID(o.clientID).
		SetCleanSession(!o.resume).
		SetKeepAlive(time.Duration(o.keepAlive) * time.Second).
		SetAutoReconnect(o.reconnect).
		SetMaxReconnectInterval(200 * time.Millisecond).
		SetConnectTimeout(o.patience).
		SetWriteTimeout(o.patience).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
			in.received(message{topic: m.Topic(), payload: string(m.Payload()), qos: m.Qos(),
				retain: m.Retained()})
		}).
		SetOnConnectHandler(func(mqtt.Client) { in.connected() }).
		SetConnectionLostHandler(func(mqtt.Client, error) { in.closed() })
	if w := o.will; w != nil {
		c.SetBinaryWill(w.topic, []byte(w.payload), w.qos, w.retain)
	}
	p := &pahoGoClient{c: mqtt.NewClient(c)}
	token := p.c.Connect()
	if err := await(ctx, token); err != nil {
		return nil, err
	}
	p.present = token.(*mqtt.ConnectToken).SessionPresent()
	return p, nil
}

// await waits for what paho calls a token, and gives its error.
func await(ctx context.Context, token mqtt.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

type pahoGoClient struct {
	c       mqtt.Client
	present bool
}

func (p *pahoGoClient) session() (present, known bool) { return p.present, true }

func (p *pahoGoClient) subscribe(ctx context.Context, subs ...subscription) ([]byte, error) {
	filters := make(map[string]byte)
	for _, s := range subs {
		filters[s.filter] = s.qos
	}
	token := p.c.SubscribeMultiple(filters, nil)
	if err := await(ctx, token); err != nil {
		return nil, err
	}
	var codes []byte
	for _, s := range subs {
		codes = append(codes, token.(*mqtt.SubscribeToken).Result()[s.filter])
	}
	return codes, nil
}

func (p *pahoGoClient) unsubscribe(ctx context.Context, filters ...string) ([]byte, error) {
	return nil, await(ctx, p.c.Unsubscribe(filters...))
}

func (p *pahoGoClient) publish(ctx context.Context, ms ...message) error {
	var tokens []mqtt.Token
	for _, m := range ms {
		tokens = append(tokens, p.c.Publish(m.topic, m.qos, m.retain, m.payload))
	}
	var errs []error
	for _, t := range tokens {
		errs = append(errs, await(ctx, t))
	}
	return errors.Join(errs...)
}

func (p *pahoGoClient) disconnect(context.Context) error {
	p.c.Disconnect(100)
	return nil
}

func (p *pahoGoClient) kill() { p.c.Disconnect(0) }
