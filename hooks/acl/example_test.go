package acl_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/acl"
)

// try asks an Authorizer about a client and prints the answer.
func try(a hooks.Authorizer, user string, action hooks.Action, topic string) {
	r := &hooks.AccessRequest{
		Client: &hooks.Client{ID: "c1", Identity: hooks.Identity{Principal: user}},
		Action: action, Topic: topic,
	}
	answer := "allowed"
	if err := a.Authorize(context.Background(), r); err != nil {
		answer = err.Error()
	}
	fmt.Printf("%s, %v %s: %s\n", user, action, topic, answer)
}

// Each rule stands in a line. The first one that matches decides.
func ExampleParse() {
	list, err := acl.Parse(strings.NewReader(`
# Everyone writes below their own name. Only jane reads everything.
allow publish sensors/%u/#
allow user=jane subscribe sensors/#
`), "rules")
	if err != nil {
		log.Fatal(err)
	}
	rules := acl.New(list)
	try(rules, "joe", hooks.ActionPublish, "sensors/joe/temperature")
	try(rules, "joe", hooks.ActionPublish, "sensors/jane/temperature")
	try(rules, "jane", hooks.ActionSubscribe, "sensors/+/temperature")
	// Output:
	// joe, publish sensors/joe/temperature: allowed
	// joe, publish sensors/jane/temperature: Not authorized: no rule allows it
	// jane, subscribe sensors/+/temperature: allowed
}

// Rules can depend on attributes that the Authenticator has set, the QoS, RETAIN and the listener.
func ExampleParse_conditions() {
	list, err := acl.Parse(strings.NewReader(`
# The public listener accepts no retained messages.
deny listener=public retain publish #
# Clients that have paid may use QoS 2 as well.
allow ${plan}=paid publish regions/${region}/#
allow qos=0,1 publish regions/${region}/#
`), "rules")
	if err != nil {
		log.Fatal(err)
	}
	rules := acl.New(list)
	r := &hooks.AccessRequest{
		Client: &hooks.Client{
			ID:       "c1",
			Listener: &hooks.Listener{Name: "public"},
			Identity: hooks.Identity{Attributes: map[string]string{"region": "eu"}},
		},
		Action: hooks.ActionPublish, Topic: "regions/eu/1", QoS: 1,
	}
	fmt.Println("QoS 1:", rules.Authorize(context.Background(), r) == nil)
	r.QoS = 2
	fmt.Println("QoS 2:", rules.Authorize(context.Background(), r) == nil)
	r.QoS, r.Retain = 1, true
	fmt.Println("retained:", rules.Authorize(context.Background(), r) == nil)
	r.Retain, r.Topic = false, "regions/us/1"
	fmt.Println("another region:", rules.Authorize(context.Background(), r) == nil)
	// Output:
	// QoS 1: true
	// QoS 2: false
	// retained: false
	// another region: false
}

// Rules can also be made in code, and replaced while clients are connected.
func ExampleRules() {
	open, err := acl.Rules(acl.Rule{Effect: acl.EffectAllow, Filters: []string{"#"}})
	if err != nil {
		log.Fatal(err)
	}
	closed, err := acl.Rules(
		acl.Rule{Effect: acl.EffectDeny, Action: hooks.ActionPublish, Filters: []string{"alarms/#"}},
		acl.Rule{Effect: acl.EffectAllow, Filters: []string{"#"}},
	)
	if err != nil {
		log.Fatal(err)
	}
	rules := acl.New(open)
	try(rules, "joe", hooks.ActionPublish, "alarms/fire")
	rules.Set(closed)
	try(rules, "joe", hooks.ActionPublish, "alarms/fire")
	try(rules, "joe", hooks.ActionSubscribe, "alarms/fire")
	// Output:
	// joe, publish alarms/fire: allowed
	// joe, publish alarms/fire: Not authorized: denied by a rule: acl: rule 1: deny alarms/#
	// joe, subscribe alarms/fire: allowed
}

// A file of Mosquitto is read as it is. Watch reads it again when it changes.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "acl")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "acl")
	if err := os.WriteFile(name, []byte("user jane\ntopic read news/#\n"), 0o600); err != nil {
		log.Fatal(err)
	}
	rules, err := acl.Open(name, acl.ParseMosquitto)
	if err != nil {
		log.Fatal(err)
	}
	// In a program: go rules.Watch(ctx, 0, func(err error) { log.Print(err) })
	try(rules, "jane", hooks.ActionSubscribe, "news/sports")
	// Output:
	// jane, subscribe news/sports: allowed
}
