package hooks_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A service for administrators at $CONTROL/sessions/v1, as Mosquitto has some below $CONTROL. It does
// what a message asks for, answers at $CONTROL/sessions/v1/response, and lets nobody else have the
// message. Who may use it is a matter of the Authorizer, which is asked before.
func ExampleInterceptor_control() {
	const topic = "$CONTROL/sessions/v1"
	var b *dunlin.Broker
	control := func(ctx context.Context, c *hooks.Client, m *packets.Message) (
		*packets.Message, error,
	) {
		if !strings.HasPrefix(m.Topic, "$CONTROL/") {
			return m, nil
		}
		command, id, _ := strings.Cut(string(m.Payload), " ")
		if m.Topic != topic || command != "delete" {
			return nil, packets.Errorf(packets.ImplementationSpecificError, "delete ID is all I know")
		}
		found, err := b.DeleteSession(ctx, id)
		if err != nil {
			return nil, err
		}
		answer := &dunlin.Message{Topic: topic + "/response", Payload: fmt.Append(nil, found)}
		if err := b.Publish(ctx, answer); err != nil {
			return nil, err
		}
		return nil, hooks.ErrDrop // it is done, and nobody else gets the message
	}
	rules := func(_ context.Context, r *hooks.AccessRequest) error {
		user, _ := r.Client.User()
		if strings.HasPrefix(r.Topic, "$CONTROL/") && user != "admin" {
			return packets.Errorf(packets.NotAuthorized, "for administrators only")
		}
		return nil
	}
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AllowAll,
		Authorizer:    hooks.AuthorizerFunc(rules),
		Interceptor:   hooks.InterceptorFunc(control),
		SystemTopics:  []string{"$CONTROL/"},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	l := listeners.NewMemory()
	go b.Serve(l) // ends with b
	for _, user := range []string{"admin", "jane"} {
		for _, payload := range []string{"delete sensor", "restart"} {
			fmt.Println(user, payload, "-", published(l, user, topic, payload))
		}
	}
	// Output:
	// admin delete sensor - No matching subscribers
	// admin restart - Implementation specific error
	// jane delete sensor - Not authorized
	// jane restart - Not authorized
}

// published returns the Reason Code that a client gets for a message.
func published(l *listeners.Memory, user, topic, payload string) packets.ReasonCode {
	nc, err := l.Dial()
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	p := packets.Publish{QoS: 1, PacketID: 1, Topic: []byte(topic), Payload: []byte(payload)}
	hello := packets.Connect{Version: packets.V5, CleanStart: true, Username: user,
		HasUsername: true}
	for _, p := range []packets.Packet{&hello, &p} {
		wire, err := p.Append(nil, packets.V5)
		if err == nil {
			_, err = nc.Write(wire)
		}
		if err != nil {
			log.Fatal(err)
		}
	}
	in := packets.NewReader(nc, packets.Limits{})
	in.SetVersion(packets.V5)
	for {
		switch p, err := in.ReadPacket(); p := p.(type) {
		case nil:
			log.Fatal(err)
		case *packets.Ack:
			return p.Code
		}
	}
}
