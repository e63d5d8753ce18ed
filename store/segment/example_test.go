package segment_test

import (
	"log"
	"net"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/store/segment"
)

// A broker whose acknowledgements mean "on the disk".
func ExampleOpen() {
	st, err := segment.Open("/var/lib/mqtt", segment.Options{})
	if err != nil {
		log.Fatal(err) // the folder cannot be used, the store is damaged, or another process has it open
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
