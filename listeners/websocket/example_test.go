package websocket_test

import (
	"log"
	"net/http"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
)

// A broker beside the other pages of a web server, on its port.
func ExampleNew() {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	l := websocket.New(websocket.Options{Origins: []string{"app.example.com"},
		PingInterval: 30 * time.Second})
	mux := http.NewServeMux()
	mux.Handle("/mqtt", l)
	mux.Handle("/", http.FileServer(http.Dir("static")))
	go b.Serve(l) // ends with b
	log.Fatal(http.ListenAndServe("localhost:8080", mux))
}
