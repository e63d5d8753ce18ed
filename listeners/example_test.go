package listeners_test

import (
	"fmt"
	"io"

	"github.com/dunlin-mqtt/dunlin/listeners"
)

// A connection without sockets. A Broker serves m as it serves any net.Listener.
func ExampleMemory() {
	m := listeners.NewMemory()
	defer m.Close()
	client, err := m.Dial()
	if err != nil {
		fmt.Println(err)
		return
	}
	server, err := m.Accept()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Fprint(client, "hello") // it is buffered: nobody needs to read yet
	client.Close()
	said, err := io.ReadAll(server)
	fmt.Printf("%s, %v\n", said, err)
	// Output: hello, <nil>
}
