package mux_test

import (
	"crypto/tls"
	"log"
	"net"
	"net/http"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners/mux"
)

// MQTT and HTTP on one port, both of them plain and inside of TLS.
func ExampleNew() {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	cert, err := tls.LoadX509KeyPair("server.crt", "server.key")
	if err != nil {
		log.Fatal(err)
	}
	tcp, err := net.Listen("tcp", ":443")
	if err != nil {
		log.Fatal(err)
	}
	m := mux.New(tcp, mux.Options{Admit: b.Admits})
	defer m.Close()
	inner := mux.New(tls.NewListener(m.TLS(), &tls.Config{Certificates: []tls.Certificate{cert}}),
		mux.Options{})
	defer inner.Close()
	for _, x := range []*mux.Mux{m, inner} {
		go b.Serve(x.MQTT())                            // ends with b
		go http.Serve(x.HTTP(), http.NotFoundHandler()) // ends with x; mount a websocket.Listener here
	}
	go inner.Serve() // ends with inner
	log.Fatal(m.Serve())
}
