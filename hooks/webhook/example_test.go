package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/webhook"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// The server checks the signature, and lets jane in.
func ExampleNewAuthenticator() {
	secret := []byte("a secret that both sides have")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || webhook.Verify(secret, r.Header, body, 0) != nil {
			http.Error(w, "who are you?", http.StatusForbidden)
			return
		}
		var question struct{ Username, Password string }
		if err := json.Unmarshal(body, &question); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if question.Username != "jane" || question.Password != "pencil" {
			fmt.Fprint(w, `{"result": "deny"}`)
			return
		}
		fmt.Fprint(w, `{"result": "allow", "roles": ["operator"], "expires_seconds": 3600}`)
	}))
	defer server.Close()

	a, err := webhook.NewAuthenticator(webhook.Options{URL: server.URL, Secret: secret})
	if err != nil {
		log.Fatal(err)
	}
	for _, password := range []string{"pencil", "brush"} {
		r := &hooks.ConnectRequest{
			Client: &hooks.Client{ID: "c1", Username: "jane", HasUsername: true, Version: packets.V5},
			Connect: &packets.Connect{HasUsername: true, Username: "jane", HasPassword: true,
				Password: []byte(password)},
			Grant: new(hooks.Grant),
		}
		err := a.Authenticate(context.Background(), r)
		fmt.Println(r.Grant.Identity.Roles, packets.CodeOf(err))
	}
	// Output:
	// [operator] Success
	// [] Bad User Name or Password
}

// The server is told what happens, several events at a time.
func ExampleNewEvents() {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var request struct{ Events []webhook.Event }
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			log.Print(err)
		}
		for _, x := range request.Events {
			fmt.Println(x.Seq, x.Event, "by", x.ClientID)
		}
	}))
	defer server.Close()

	events, err := webhook.NewEvents(webhook.EventOptions{URL: server.URL})
	if err != nil {
		log.Fatal(err)
	}
	observer := events.Observer() // for Config.Observer
	jane := &hooks.Client{ID: "c1", Username: "jane", HasUsername: true}
	observer.Connected(hooks.Connected{Client: jane})
	observer.Subscribed(hooks.Subscribed{
		Client: jane, Filter: "news/#", MountedFilter: "news/#", QoS: packets.QoS1,
	})

	patient, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := events.Close(patient); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 1 connected by c1
	// 2 subscribed by c1
}
