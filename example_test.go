package dunlin_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// newBroker is what the examples begin with.
func newBroker() *dunlin.Broker {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		log.Fatal(err)
	}
	return b
}

func ExampleBroker_Publish() {
	b := newBroker()
	defer b.Close()
	ctx := context.Background()
	sub, err := b.Subscribe(ctx, "greetings/+", nil)
	if err != nil {
		log.Fatal(err)
	}
	err = b.Publish(ctx, &dunlin.Message{
		Topic: "greetings/world", Payload: []byte("hello"), QoS: 1,
		Properties: packets.Properties(nil).AppendText(packets.ContentType, "text/plain").AppendUser("language", "en"),
	})
	if err != nil {
		log.Fatal(err)
	}
	m, err := sub.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.Topic, string(m.Payload), m.ContentType())
	// Output: greetings/world hello text/plain
}

func ExampleBroker_PublishWait() {
	b := newBroker()
	defer b.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	jobs, err := b.Subscribe(ctx, "jobs", &dunlin.SubscribeOptions{QoS: 1, ManualAck: true})
	if err != nil {
		log.Fatal(err)
	}
	go func() { // ends with jobs
		for m := range jobs.Messages() {
			m.Ack() // when the work is done
		}
	}()
	outcome, err := b.PublishWait(ctx, &dunlin.Message{Topic: "jobs", QoS: 1})
	fmt.Printf("%+v %v\n", outcome, err)
	// Output: {Matched:1 Acknowledged:1 Lost:0} <nil>
}

func ExampleBroker_Subscribe() {
	b := newBroker()
	defer b.Close()
	ctx := context.Background()
	// Nothing is lost: who publishes waits, for a bounded time, while the reader is behind.
	sub, err := b.Subscribe(ctx, "sensors/#", &dunlin.SubscribeOptions{QoS: 1, Buffer: 100, Overflow: dunlin.OverflowBlock})
	if err != nil {
		log.Fatal(err)
	}
	for i := range 3 {
		b.Publish(ctx, &dunlin.Message{Topic: fmt.Sprintf("sensors/%d", i), Payload: []byte("21.5")})
	}
	n := 0
	for m := range sub.Messages() {
		fmt.Println(m.Topic, string(m.Payload))
		if n++; n == 3 {
			sub.Close() // and the loop ends
		}
	}
	fmt.Println(sub.Err(), sub.Dropped())
	// Output:
	// sensors/0 21.5
	// sensors/1 21.5
	// sensors/2 21.5
	// dunlin: subscription closed 0
}

// A Subscription with a Name keeps its queue while nobody reads it.
func ExampleBroker_Subscribe_durable() {
	b := newBroker()
	defer b.Close()
	ctx := context.Background()
	orders := &dunlin.SubscribeOptions{Name: "billing", QoS: 1, ManualAck: true}
	sub, err := b.Subscribe(ctx, "orders/+", orders)
	if err != nil {
		log.Fatal(err)
	}
	sub.Close() // the reader goes away
	b.Publish(ctx, &dunlin.Message{Topic: "orders/7", Payload: []byte("paid"), QoS: 1})
	if sub, err = b.Subscribe(ctx, "orders/+", orders); err != nil {
		log.Fatal(err)
	}
	m, err := sub.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.Topic, string(m.Payload))
	m.Ack()
	// Output: orders/7 paid
}

// NoLocal leaves out what the Subscription publishes itself, so that a bridge does not hear its own echo.
func ExampleSubscription_Publish() {
	b := newBroker()
	defer b.Close()
	ctx := context.Background()
	bridge, err := b.Subscribe(ctx, "#", &dunlin.SubscribeOptions{NoLocal: true})
	if err != nil {
		log.Fatal(err)
	}
	bridge.Publish(ctx, &dunlin.Message{Topic: "a", Payload: []byte("from the other side")})
	b.Publish(ctx, &dunlin.Message{Topic: "a", Payload: []byte("from this side")})
	m, err := bridge.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(m.Payload))
	// Output: from this side
}

func ExampleSubscribeAs() {
	type reading struct {
		Celsius float64 `json:"celsius"`
	}
	b := newBroker()
	defer b.Close()
	ctx := context.Background()
	sub, err := dunlin.SubscribeAs(ctx, b, "sensors/+", dunlin.JSON[reading], nil)
	if err != nil {
		log.Fatal(err)
	}
	b.Publish(ctx, &dunlin.Message{Topic: "sensors/roof", Payload: []byte(`{"celsius": 21.5}`)})
	b.Publish(ctx, &dunlin.Message{Topic: "sensors/cellar", Payload: []byte(`broken`)})
	for range 2 {
		m, err := sub.Next(ctx)
		if err != nil {
			log.Fatal(err)
		}
		if m.Err != nil {
			fmt.Println(m.Topic, "cannot be read")
			continue
		}
		fmt.Println(m.Topic, m.Value.Celsius)
	}
	// Output:
	// sensors/roof 21.5
	// sensors/cellar cannot be read
}

func ExampleBroker_Respond() {
	b := newBroker()
	defer b.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := b.Respond(ctx, "upper", func(_ context.Context, m *dunlin.Incoming) (*dunlin.Message, error) {
		if len(m.Payload) == 0 {
			return nil, errors.New("nothing to do")
		}
		return &dunlin.Message{Payload: []byte(strings.ToUpper(string(m.Payload))), QoS: 1}, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	m, err := b.Request(ctx, "upper", []byte("dunlin"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(m.Payload))
	_, err = b.Request(ctx, "upper", nil)
	fmt.Println(err)
	// Output:
	// DUNLIN
	// dunlin: the responder failed: nothing to do
}

func ExampleBroker_Request() {
	b := newBroker()
	defer b.Close()
	_, err := b.Request(context.Background(), "devices/7/reboot", nil)
	fmt.Println(errors.Is(err, dunlin.ErrNoResponder))
	// Output: true
}
