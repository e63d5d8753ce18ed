package bbolt_test

import (
	"log"
	"net"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/store/bbolt"
)

// A broker that keeps its state in one file of bbolt.
func ExampleOpen() {
	st, err := bbolt.Open("/var/lib/mqtt.db", bbolt.Options{})
	if err != nil {
		log.Fatal(err) // the file cannot be used, is damaged, or another process has it open
	}
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Store: st})
	if err != nil {
		st.Close()
		log.Fatal(err)
	}
	defer b.Close() // closes the store, too
	l, err := net.Listen("tcp", "127.0.0.1:1883")
	if err != nil {
		log.Fatal(err)
	}
	log.Print(b.Serve(l))
}
