package quic_test

import (
	"crypto/tls"
	"log"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners/quic"
)

func ExampleListen() {
	cert, err := tls.LoadX509KeyPair("server.crt", "server.key")
	if err != nil {
		log.Fatal(err)
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	l, err := quic.Listen("udp", ":14567", &tls.Config{Certificates: []tls.Certificate{cert}},
		quic.Options{})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(b.Serve(l))
}
