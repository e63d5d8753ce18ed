package dunlin_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// visit connects to a broker, publishes, and prints the Reason Codes of the answers.
func visit(b *dunlin.Broker, id, user, password, topic, payload string) {
	client, server := net.Pipe()
	defer client.Close()
	go b.ServeConn(context.Background(), server) // ends with client
	r := packets.NewReader(client, packets.Limits{})
	r.SetVersion(packets.V5)
	send := func(p packets.Packet) packets.Packet {
		wire, err := p.Append(nil, packets.V5)
		if err == nil {
			_, err = client.Write(wire)
		}
		if err != nil {
			log.Fatal(err)
		}
		answer, err := r.ReadPacket()
		if err != nil {
			log.Fatal(err)
		}
		return answer
	}
	ack := send(&packets.Connect{
		Version: packets.V5, ClientID: id, CleanStart: true, HasUsername: user != "", Username: user, HasPassword: password != "", Password: []byte(password),
	}).(*packets.Connack)
	if ack.Code.Failed() {
		fmt.Println(id, "connects:", ack.Code)
		return
	}
	code := send(&packets.Publish{Topic: []byte(topic), Payload: []byte(payload), QoS: packets.QoS1, PacketID: 1}).(*packets.Ack).Code
	fmt.Println(id, "publishes", topic+":", code)
}

func ExampleNew() {
	_, err := dunlin.New(dunlin.Config{})
	fmt.Println(err)

	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, MaxPacketSize: 64 << 10, SysInterval: time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	// Output: dunlin: Config.Authenticator is nil: name one, or hooks.AllowAll to accept everybody
}

func ExampleBroker_Serve() {
	b := newBroker()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	inMemory := listeners.NewMemory() // for clients in the same program, without a socket
	served := make(chan error)
	go func() { served <- b.Serve(tcp) }()
	go func() { served <- b.Serve(inMemory) }()
	b.Close()
	fmt.Println(<-served)
	fmt.Println(<-served)
	// Output:
	// dunlin: broker closed
	// dunlin: broker closed
}

// Two listeners: what is public needs a password, what is inside does not.
func ExampleBroker_ServeListener() {
	public := &hooks.Listener{Name: "public", MaxConnections: 1000}
	inside := &hooks.Listener{Name: "inside"}
	decide := func(ctx context.Context, r *hooks.ConnectRequest) error {
		if r.Client.Listener == public && string(r.Connect.Password) != "secret" {
			return packets.Errorf(packets.NotAuthorized, "not without the password")
		}
		return nil
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AuthenticatorFunc(decide)})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	for _, as := range []*hooks.Listener{public, inside} {
		l := listeners.NewMemory() // or one of net.Listen
		go b.ServeListener(l, as)  // ends with b
		nc, err := l.Dial()
		if err != nil {
			log.Fatal(err)
		}
		connect := &packets.Connect{Version: packets.V5, ClientID: "c", CleanStart: true}
		wire, err := connect.Append(nil, packets.V5)
		if err != nil {
			log.Fatal(err)
		}
		if _, err := nc.Write(wire); err != nil {
			log.Fatal(err)
		}
		r := packets.NewReader(nc, packets.Limits{})
		r.SetVersion(packets.V5)
		answer, err := r.ReadPacket()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(as.Name+":", answer.(*packets.Connack).Code)
		nc.Close()
	}
	// Output:
	// public: Not authorized
	// inside: Success
}

func ExampleBroker_ServeConn() {
	b := newBroker()
	defer b.Close()
	client, server := net.Pipe() // or what you have accepted yourself
	go client.Close()
	fmt.Println(b.ServeConn(context.Background(), server))
	// Output: EOF
}

func ExampleBroker_Shutdown() {
	b := newBroker()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println(b.Shutdown(ctx))
	fmt.Println(b.Publish(ctx, &dunlin.Message{Topic: "a"}))
	// Output:
	// <nil>
	// dunlin: broker closed
}

func ExampleConfig_authenticator() {
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AuthenticatorFunc(func(ctx context.Context, r *hooks.ConnectRequest) error {
			if r.Client.Username != "ann" || string(r.Connect.Password) != "secret" {
				return packets.Errorf(packets.BadUserNameOrPassword, "unknown user or password")
			}
			r.Grant.Identity.Roles = []string{"gardener"}
			r.Grant.Limits.PacketSize = 4 << 10
			return nil
		}),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	visit(b, "c1", "ann", "guessed", "garden/pump", "on")
	visit(b, "c1", "ann", "secret", "garden/pump", "on")
	// Output:
	// c1 connects: Bad User Name or Password
	// c1 publishes garden/pump: No matching subscribers
}

func ExampleConfig_authorizer() {
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AllowAll,
		Authorizer: hooks.AuthorizerFunc(func(ctx context.Context, r *hooks.AccessRequest) error {
			if r.Action == hooks.ActionPublish && !strings.HasPrefix(r.Topic, "devices/"+r.Client.ID+"/") {
				return packets.Errorf(packets.NotAuthorized, "publish below devices/%s/", r.Client.ID)
			}
			return nil
		}),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	visit(b, "d7", "", "", "devices/d7/state", "up")
	visit(b, "d7", "", "", "devices/d8/state", "up")
	// Output:
	// d7 publishes devices/d7/state: No matching subscribers
	// d7 publishes devices/d8/state: Not authorized
}

func ExampleConfig_interceptor() {
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AllowAll,
		Interceptor: hooks.InterceptorFunc(func(ctx context.Context, c *hooks.Client, m *packets.Message) (*packets.Message, error) {
			changed := *m // what is published is not to be modified
			changed.AddUser("from", c.ID)
			return &changed, nil
		}),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	sub, err := b.Subscribe(context.Background(), "#", nil)
	if err != nil {
		log.Fatal(err)
	}
	visit(b, "c1", "", "", "a", "")
	m, err := sub.Next(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for k, v := range m.Properties.User() {
		fmt.Println(k, v)
	}
	// Output:
	// c1 publishes a: Success
	// from c1
}

func ExampleConfig_observer() {
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AllowAll,
		Observer: &hooks.Observer{
			Connected: func(e hooks.Connected) {
				fmt.Println(e.Client.ID, "is here, with version", e.Client.Version)
			},
			Published: func(e hooks.Published) { fmt.Println(e.Topic(), "is for", e.Matched) },
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	visit(b, "c1", "", "", "a", "")
	// Output:
	// c1 is here, with version 5.0
	// a is for 0
	// c1 publishes a: No matching subscribers
}

func ExampleConfig_store() {
	st := new(memory.Store) // for tests; package store/segment is one on disk
	ctx := context.Background()
	for range 2 {
		b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Store: st})
		if err != nil {
			log.Fatal(err)
		}
		n := 0
		for m := range b.Retained("#") {
			fmt.Println(m.Topic, string(m.Payload))
			n++
		}
		if n == 0 {
			b.Publish(ctx, &dunlin.Message{Topic: "gate", Payload: []byte("open"), QoS: 1, Retain: true})
		}
		b.Close() // closes the store as well
		if err := st.Open(); err != nil {
			log.Fatal(err)
		}
	}
	// Output: gate open
}

func ExampleConfig_responseInformation() {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, ResponseInformation: "answers/"})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	_, err = b.Respond(context.Background(), "ping", func(_ context.Context, m *dunlin.Incoming) (*dunlin.Message, error) {
		fmt.Println("the answer goes below", m.ResponseTopic()[:len("answers/")])
		return &dunlin.Message{Payload: []byte("pong")}, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	m, err := b.Request(context.Background(), "ping", nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(m.Payload))
	// Output:
	// the answer goes below answers/
	// pong
}

func ExampleBroker_Sessions() {
	b := newBroker()
	defer b.Close()
	sub, err := b.Subscribe(context.Background(), "jobs/#", &dunlin.SubscribeOptions{Name: "worker", QoS: 1})
	if err != nil {
		log.Fatal(err)
	}
	sub.Close()
	b.Publish(context.Background(), &dunlin.Message{Topic: "jobs/1", QoS: 1})
	for s := range b.Sessions() {
		fmt.Println(s.ClientID, "has", s.Queued, "queued from", s.Subscriptions[0].Filter)
	}
	fmt.Println(b.DeleteSession(context.Background(), "$local/worker"))
	// Output:
	// $local/worker has 1 queued from jobs/#
	// true <nil>
}

func ExampleBroker_Ban() {
	b := newBroker()
	defer b.Close()
	if err := b.Ban(dunlin.Ban{Kind: dunlin.BanClient, Value: "c1", Reason: "sends nonsense"}); err != nil {
		log.Fatal(err)
	}
	visit(b, "c1", "", "", "a", "")
	visit(b, "c2", "", "", "a", "")
	// Output:
	// c1 connects: Banned
	// c2 publishes a: No matching subscribers
}

func ExampleBroker_Stats() {
	b := newBroker()
	defer b.Close()
	b.Publish(context.Background(), &dunlin.Message{Topic: "gate", Payload: []byte("open"), Retain: true})
	st := b.Stats()
	fmt.Println(st.Retained, "retained,", st.Connections, "connections")
	// Output: 1 retained, 0 connections
}

func ExampleBroker_Healthy() {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Store: new(memory.Store)})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	if err := b.Healthy(); err != nil {
		log.Print("the store fails: ", err)
	}
	fmt.Println(b.Healthy())
	// Output: <nil>
}
