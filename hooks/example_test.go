package hooks_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
	"github.com/dunlin-mqtt/dunlin/hooks/audit"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/hooks/auth/tlsfiles"
	"github.com/dunlin-mqtt/dunlin/hooks/webhook"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func ExampleAuthenticator() {
	config := dunlin.Config{Authenticator: hooks.AuthenticatorFunc(func(ctx context.Context,
		r *hooks.ConnectRequest) error {
		if r.Client.Username != "jane" || string(r.Connect.Password) != "pencil" {
			return packets.Errorf(packets.BadUserNameOrPassword, "who are you?")
		}
		r.Grant.Identity = hooks.Identity{Principal: "jane", Roles: []string{"operator"}, Tenant: "t7"}
		r.Grant.Limits = hooks.Limits{PacketSize: 64 << 10, PublishRate: 100}
		r.Grant.MountPoint = "tenants/t7/"
		r.Grant.Expires = time.Now().Add(time.Hour)
		return nil
	})}
	b, err := dunlin.New(config)
	if err != nil {
		log.Fatal(err)
	}
	b.Close()
}

// A client that subscribes to everything gets the topics of its user instead, at QoS 1 at most.
func ExampleSubscribeInterceptor() {
	narrow := func(_ context.Context, c *hooks.Client, s *packets.Subscription) (
		*packets.Subscription, error,
	) {
		out := *s
		out.QoS = min(s.QoS, packets.QoS1)
		if s.Filter == "#" {
			out.Filter = "users/" + c.Username + "/#"
		}
		return &out, nil
	}
	b, err := dunlin.New(dunlin.Config{
		Authenticator:        hooks.AllowAll,
		SubscribeInterceptor: hooks.SubscribeInterceptorFunc(narrow),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	ack := answers(b,
		&packets.Connect{
			Version: packets.V5, CleanStart: true, ClientID: "c1", HasUsername: true, Username: "jane",
		},
		&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{
			{Filter: "#", QoS: packets.QoS2},
		}},
	)[1].(*packets.Suback)
	fmt.Println("granted:", ack.Codes[0])
	info, _ := b.Session("c1")
	fmt.Println("replaced:", info.Replaced)
	fmt.Println("another user's:", b.Explain(context.Background(), "c1", "users/joe/1").Cause)
	// Output:
	// granted: Granted QoS 1
	// replaced: map[#:users/jane/#]
	// another user's: filter replaced
}

// Guests read the temperature of a room, and not who is in it.
func ExampleDeliveryInterceptor() {
	redact := func(_ context.Context, c *hooks.Client, m *packets.Message) (
		*packets.Message, error,
	) {
		if c.Username == "owner" {
			return m, nil
		}
		var room struct{ Temperature float64 }
		if err := json.Unmarshal(m.Payload, &room); err != nil {
			return nil, err
		}
		out := *m // the copy shares what is not replaced
		out.Payload = fmt.Appendf(nil, `{"temperature":%v}`, room.Temperature)
		return &out, nil
	}
	b, err := dunlin.New(dunlin.Config{
		Authenticator:       hooks.AllowAll,
		DeliveryInterceptor: hooks.DeliveryInterceptorFunc(redact),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	err = b.Publish(context.Background(), &dunlin.Message{Topic: "room/1", Retain: true,
		Payload: []byte(`{"temperature":21.5,"people":["ann","joe"]}`)})
	if err != nil {
		log.Fatal(err)
	}
	got := answers(b,
		&packets.Connect{Version: packets.V5, CleanStart: true, HasUsername: true, Username: "guest"},
		&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "room/+"}}},
		nil,
	)
	fmt.Printf("%s\n", got[2].(*packets.Publish).Payload)
	// Output:
	// {"temperature":21.5}
}

// An Authenticator puts properties into the CONNACK, whether it accepts the client or refuses it.
func ExampleGrant_connackProperties() {
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
			if r.Client.Username == "guest" {
				return &packets.Error{
					Code: packets.QuotaExceeded, Reason: "too many guests",
					UserProperties: packets.Properties(nil).AppendUser("retry-after", "60"),
				}
			}
			r.Grant.ConnackProperties = packets.Properties(nil).
				AppendUser("plan", "paid").
				AppendText(packets.ResponseInformation, "answers/"+r.Client.Username+"/")
			return nil
		}),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	for _, user := range []string{"jane", "guest"} {
		ack := answers(b, &packets.Connect{
			Version: packets.V5, CleanStart: true, ClientID: "c1", HasUsername: true, Username: user,
			Properties: packets.Properties(nil).AppendUint(packets.RequestResponseInformation, 1),
		})[0].(*packets.Connack)
		info, _ := ack.Properties.Text(packets.ResponseInformation)
		for key, value := range ack.Properties.User() {
			fmt.Printf("%s: %v, %q, %s=%s\n", user, ack.Code, info, key, value)
		}
	}
	// Output:
	// jane: Success, "answers/jane/", plan=paid
	// guest: Quota exceeded, "", retry-after=60
}

// answers sends packets to b, each after the answer to the one before, and returns the answers. The
// connection ends with b.
func answers(b *dunlin.Broker, ps ...packets.Packet) (all []packets.Packet) {
	l := listeners.NewMemory()
	go b.Serve(l)
	nc, err := l.Dial()
	if err != nil {
		log.Fatal(err)
	}
	r := packets.NewReader(nc, packets.Limits{})
	r.SetVersion(packets.V5)
	for _, p := range ps {
		if p != nil {
			wire, err := p.Append(nil, packets.V5)
			if err != nil {
				log.Fatal(err)
			}
			if _, err := nc.Write(wire); err != nil {
				log.Fatal(err)
			}
		}
		answer, err := r.ReadPacket()
		if err != nil {
			log.Fatal(err)
		}
		all = append(all, answer)
	}
	return all
}

// A password that is sent in three parts, so to speak.
func ExampleEnhancedAuthenticator() {
	method := hooks.EnhancedAuthenticatorFunc(func(_ context.Context,
		r *hooks.ConnectRequest) (hooks.Exchange, error) {
		return &inParts{r.Grant, ""}, nil
	})
	r := &hooks.ConnectRequest{Client: new(hooks.Client), Grant: new(hooks.Grant)}
	x, _ := method.Start(context.Background(), r)
	for _, data := range []string{"pen", "ci", "l"} {
		reply, done, err := x.Next(context.Background(), []byte(data))
		fmt.Printf("%q %v %v\n", reply, done, err)
	}
	fmt.Println(r.Grant.Identity.Principal)
	// Output:
	// "go on" false <nil>
	// "go on" false <nil>
	// "" true <nil>
	// jane
}

type inParts struct {
	grant  *hooks.Grant
	pieces string
}

func (x *inParts) Next(_ context.Context, data []byte) (reply []byte, done bool, err error) {
	switch x.pieces += string(data); {
	case x.pieces == "pencil":
		x.grant.Identity.Principal = "jane"
		return nil, true, nil
	case !strings.HasPrefix("pencil", x.pieces):
		return nil, false, packets.Errorf(packets.NotAuthorized, "no")
	}
	return []byte("go on"), false, nil
}

func ExampleAuthorizer() {
	ownTopics := hooks.AuthorizerFunc(func(_ context.Context, r *hooks.AccessRequest) error {
		name, ok := r.Client.User()
		switch {
		case !ok:
			return hooks.ErrAbstain
		case strings.HasPrefix(r.Topic,
			"users/"+name+"/"): // holds for a Topic Filter, too: all that it matches begins so
			return nil
		}
		return packets.Errorf(packets.NotAuthorized, "only below users/%s/", name)
	})
	jane := &hooks.Client{Username: "jane", HasUsername: true}
	for _, topic := range []string{"users/jane/#", "users/#"} {
		fmt.Println(topic, ownTopics.Authorize(context.Background(),
			&hooks.AccessRequest{Client: jane, Action: hooks.ActionSubscribe, Topic: topic}))
	}
	// Output:
	// users/jane/# <nil>
	// users/# Not authorized: only below users/jane/
}

func ExampleChainAuthorizers() {
	administrators := hooks.AuthorizerFunc(func(_ context.Context, r *hooks.AccessRequest) error {
		if len(r.Client.Identity.Roles) > 0 && r.Client.Identity.Roles[0] == "administrator" {
			return nil
		}
		return hooks.ErrAbstain
	})
	rules, err := acl.Rules(acl.Rule{Effect: acl.EffectAllow, Action: hooks.ActionSubscribe,
		Filters: []string{"public/#"}})
	if err != nil {
		log.Fatal(err)
	}
	both := hooks.ChainAuthorizers(administrators, acl.New(rules))
	for _, role := range []string{"administrator", "guest"} {
		c := &hooks.Client{Identity: hooks.Identity{Roles: []string{role}}}
		err := both.Authorize(context.Background(),
			&hooks.AccessRequest{Client: c, Action: hooks.ActionPublish, Topic: "public/news"})
		fmt.Println(role, packets.CodeOf(err))
	}
	// Output:
	// administrator Success
	// guest Not authorized
}

// Every delivery is decided, for a rule that no Topic Filter can express.
func ExampleDeliveryAuthorizer() {
	var _ hooks.DeliveryAuthorizer = evenOnly{}
	fmt.Println(evenOnly{}.AuthorizeDelivery(context.Background(),
		&hooks.AccessRequest{Client: new(hooks.Client), Action: hooks.ActionDeliver,
			Topic: "n/7"}) == nil)
	// Output: false
}

type evenOnly struct{}

func (evenOnly) Authorize(context.Context, *hooks.AccessRequest) error { return nil }

func (evenOnly) AuthorizeDelivery(_ context.Context, r *hooks.AccessRequest) error {
	if strings.ContainsAny(r.Topic[len(r.Topic)-1:], "02468") {
		return nil
	}
	return packets.Errorf(packets.NotAuthorized, "an odd one")
}

func ExampleInterceptor() {
	limit := hooks.InterceptorFunc(func(_ context.Context, c *hooks.Client,
		m *packets.Message) (*packets.Message, error) {
		switch {
		case len(m.Payload) == 0 && !m.Retain:
			return nil, hooks.ErrDrop
		case len(m.Payload) > 1000:
			return nil, packets.Errorf(packets.QuotaExceeded, "at most 1000 bytes")
		case strings.HasPrefix(m.Topic, "old/"):
			moved := *m // never the message itself
			moved.Topic = "new/" + m.Topic[len("old/"):]
			return &moved, nil
		}
		return m, nil
	})
	m, _ := limit.Intercept(context.Background(), nil,
		&packets.Message{Topic: "old/a", Payload: []byte("x")})
	fmt.Println(m.Topic)
	// Output: new/a
}

func ExampleJoin() {
	count := map[string]int{} // of a program with one connection, or else under a lock
	counter := &hooks.Observer{
		Connected: func(hooks.Connected) { count["connected"]++ },
		Dropped:   func(hooks.Dropped) { count["dropped"]++ },
	}
	logger := &hooks.Observer{Denied: func(e hooks.Denied) {
		slog.Info("denied", "client", e.Client.ID, "action", e.Action, "topic", e.Topic, "err", e.Err)
	}}
	config := dunlin.Config{Authenticator: hooks.AllowAll, Observer: hooks.Join(counter, logger)}
	config.Observer.Connected(hooks.Connected{Client: new(hooks.Client)})
	fmt.Println(count)
	// Output: map[connected:1]
}

// Files that a Mosquitto has, read again when they change.
func Example_files() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	users, err := auth.Open("passwords")
	if err != nil {
		fmt.Println("no passwords:", err != nil)
		return
	}
	rules, err := acl.Open("acl", acl.ParseMosquitto)
	if err != nil {
		log.Fatal(err)
	}
	report := func(err error) { slog.Info("reloaded", "err", err) }
	go users.Watch(ctx, 0, report) // both end with ctx
	go rules.Watch(ctx, 0, report)
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.ChainAuthenticators(users, auth.Anonymous(false)),
		EnhancedAuth:  map[string]hooks.EnhancedAuthenticator{auth.SCRAMSHA256: auth.SCRAM(users.Find)},
		Authorizer:    rules,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	// Output: no passwords: true
}

func Example_users() {
	users, err := auth.NewUsers([]auth.User{
		{Name: "jane", Hash: auth.Hash("pencil", 0), Grant: &hooks.Grant{Identity: hooks.Identity{Roles: []string{"operator"}}}},
		{Name: "joe", Hash: auth.HashSCRAM("brush", 0)},
	})
	if err != nil {
		log.Fatal(err)
	}
	passwords := auth.NewPasswords(users)
	r := &hooks.ConnectRequest{
		Client: &hooks.Client{HasUsername: true, Username: "jane"},
		Connect: &packets.Connect{HasUsername: true, Username: "jane", HasPassword: true,
			Password: []byte("pencil")},
		Grant: new(hooks.Grant),
	}
	fmt.Println(passwords.Authenticate(context.Background(), r), r.Grant.Identity.Principal,
		r.Grant.Identity.Roles)
	// Output: <nil> jane [operator]
}

// Rules of one's own, in code.
func Example_rules() {
	list, err := acl.Rules(
		acl.Rule{Effect: acl.EffectDeny, Who: acl.Who{Role: "guest"}, Action: hooks.ActionPublish,
			Filters: []string{"#"}},
		acl.Rule{Effect: acl.EffectAllow, Who: acl.Who{Addr: netip.MustParsePrefix("10.0.0.0/8")},
			Filters: []string{"#"}},
		acl.Rule{Effect: acl.EffectAllow, Filters: []string{"clients/%c/#", "all/#"}},
	)
	if err != nil {
		log.Fatal(err)
	}
	rules := acl.New(list)
	c := &hooks.Client{ID: "c1"}
	for _, filter := range []string{"clients/c1/+", "clients/+/x", "#"} {
		err := rules.Authorize(context.Background(),
			&hooks.AccessRequest{Client: c, Action: hooks.ActionSubscribe, Topic: filter})
		fmt.Println(filter, packets.CodeOf(err))
	}
	// Output:
	// clients/c1/+ Success
	// clients/+/x Not authorized
	// # Not authorized
}

// Clients with certificates by these, everybody else by password.
func Example_certificates() {
	files, err := tlsfiles.Open(tlsfiles.Options{Certificate: "server.crt", Key: "server.key",
		ClientCAs: "clients.crt", CRL: "clients.crl"})
	if err != nil {
		fmt.Println("no certificate:", err != nil)
		return
	}
	go files.Watch(context.Background(), 0, nil) // ends with the program
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.ChainAuthenticators(auth.Certificate(auth.CommonName), auth.NewPasswords(nil))})
	if err != nil {
		log.Fatal(err)
	}
	l, err := tls.Listen("tcp", ":8883", files.Config())
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(b.Serve(l))
	// Output: no certificate: true
}

func Example_audit() {
	trail := audit.New(slog.NewTextHandler(os.Stdout,
		&slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}), 0)
	o := trail.Observer() // for Config.Observer
	o.Refused(hooks.Refused{
		Client: &hooks.Client{ID: "c1", HasUsername: true, Username: "jane"},
		Code:   packets.BadUserNameOrPassword,
	})
	if err := trail.Close(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output: level=WARN msg="connect refused" client_id=c1 user=jane code=134 reason="Bad User Name or Password"
}

func Example_webhook() {
	who, err := webhook.NewAuthenticator(webhook.Options{URL: "https://api.example.org/connect", Secret: []byte("secret")})
	if err != nil {
		log.Fatal(err)
	}
	what, err := webhook.NewAuthorizer(webhook.Options{URL: "https://api.example.org/access", Secret: []byte("secret")})
	if err != nil {
		log.Fatal(err)
	}
	events, err := webhook.NewEvents(webhook.EventOptions{URL: "https://api.example.org/events", Secret: []byte("secret")})
	if err != nil {
		log.Fatal(err)
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: who, Authorizer: what,
		Observer: events.Observer()})
	if err != nil {
		log.Fatal(err)
	}
	b.Close()
	fmt.Println(events.Close(context.Background()))
	// Output: <nil>
}
