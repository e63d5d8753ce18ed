package memory_test

import (
	"context"
	"fmt"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// In a test, a Store in memory outlives the broker: the next broker knows what was retained.
func ExampleStore() {
	var st memory.Store
	first, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Store: &st})
	if err != nil {
		fmt.Println(err)
		return
	}
	on := &dunlin.Message{Topic: "lamp", Payload: []byte("on"), Retain: true, QoS: packets.QoS1}
	if err := first.Publish(context.Background(), on); err != nil {
		fmt.Println(err)
	}
	first.Close() // closes the Store, too

	st.Open()
	second, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll, Store: &st})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer second.Close()
	for m := range second.Retained("#") {
		fmt.Printf("%s is %s\n", m.Topic, m.Payload)
	}
	// Output: lamp is on
}
