package store_test

import (
	"context"
	"fmt"
	"log"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// A broker commits batches of operations, and loads them after a restart.
func ExampleStore() {
	ctx := context.Background()
	var disk memory.Store // or that of package segment or bbolt, or one of your own
	lamp := &store.Message{Message: packets.Message{Topic: "lamp", Payload: []byte("on"),
		QoS: packets.QoS1, Retain: true}}
	if err := disk.Commit(ctx, []store.Op{&store.PutRetained{Message: lamp}}); err != nil {
		log.Fatal(err) // nothing of the batch may be acknowledged
	}
	disk.Close()
	if err := disk.Open(); err != nil { // the broker starts again
		log.Fatal(err)
	}
	for op, err := range disk.Load(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		switch op := op.(type) { // not always the operation that was committed
		case *store.PutRetained:
			fmt.Println(op.Message.Topic, string(op.Message.Payload))
		case *store.Publish:
			fmt.Println(op.Message.Topic, string(op.Message.Payload), op.Retain)
		}
	}
	// Output: lamp on true
}
