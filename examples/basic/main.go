// Command basic is the smallest complete broker.
package main

import (
	"fmt"
	"log"
	"net"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
)

func main() {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:1883")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", l.Addr(), "- now, in a second and a third terminal:")
	fmt.Println("  mosquitto_sub -V 5 -q 1 -t 'hello/#' -v")
	fmt.Println("  mosquitto_pub -V 5 -q 1 -t hello/world -m hi")
	log.Fatal(b.Serve(l))
}
