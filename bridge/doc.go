// Package bridge connects a broker of the program with remote brokers, in the way of Mosquitto's
// "connection": with several addresses, topics with a direction, a QoS and prefixes,
// notifications, TLS, and MQTT 3.1.1 or 5.0.
//
//	node, err := bridge.New(bridge.Config{Name: "berlin", Links: []bridge.Link{{
//		Name: "head", Addresses: []string{"mqtts://head.example.com:8883"},
//		Topics: []bridge.Topic{{Filter: "sensors/#", Direction: bridge.DirectionOut, QoS: 1}},
//	}}})
//	...
//	node.Install(&cfg) // the Config of the broker
//	b, err := dunlin.New(cfg)
//	...
//	err = node.Start(b)
//	defer node.Close() // before b.Close
//
// # Delivery
//
// A link is a client of both brokers. It forwards packets between its Session at the one and its
// Session at the other, and leaves their Packet Identifiers as they are. So each acknowledgement
// comes from the broker that has the message, and the link has no state that could be lost. If a
// connection breaks, or if the link or a broker restarts, the Sessions send again what was under
// way. A QoS 2 message arrives once, and a QoS 1 message at least once. This holds over a restart
// if the broker has a Store, and if the remote broker keeps its Sessions.
//
// A Mosquitto 2.0.11 does not keep them whole. When it starts again, it remembers of as many QoS 2
// messages for a client as its max_inflight_messages says, 20 by default, that it has sent PUBREL.
// It publishes the others again [MQTT-4.3.3-6], and they arrive twice. Set max_inflight_messages to
// more than it has in flight when it stops, but to less than 32,768: 1000, for instance.
//
// The queue for the remote broker is the Session "$bridge/NAME" of the broker here, where NAME is
// that of the Link. Start makes it, so that messages wait before the link connects for the first
// time. The limits of Config for a Session bound it: MaxQueuedMessages, MaxQueuedBytes
// and Overflow. QoS 0 messages wait only with QueueQoS0. A link itself holds a packet each way, and
// four buffers of 16 KiB.
//
// If a broker refuses a message because of a limit of the moment (Quota exceeded, Unspecified error
// or Implementation specific error), the link connects anew, and the message is sent again. Any
// other refusal counts in LinkStats.Refused, and the message is not sent again.
//
// With several Addresses the brokers there have Sessions of their own. A message that is under way
// when the link turns to another address may be at both.
//
// # Circles
//
// A Node marks each message with two User Properties, a random number (dunlin-bridge-id) and the
// names of the brokers that it has passed (dunlin-bridge-path). It drops a message that has passed
// it, or has come by another way before. So the links may form any graph, with circles and parallel
// links, if every broker of it has a Node and every link uses 5.0. A message then comes once, at
// every QoS, as long as the Node remembers it (Config.Remember). The Node forgets when its program
// ends: what is under way by two ways at that moment may come twice.
//
//   - Broker.Publish does not pass the Node. Use Node.Publish in a graph with circles.
//   - A broker without a Node, such as Mosquitto, may stand anywhere in the graph but not in a
//     circle: it cannot tell copies apart. Name it in Link.Remote.
//   - Links of 3.1.1 carry no marks. They set the bridge bit, so that the remote broker does not
//     send back what it got. What came over such a link is not sent on over another one, except
//     with Link.Transit. That breaks circles of links that send (DirectionOut). A circle of 3.1.1
//     links that fetch (DirectionIn, DirectionBoth) is not broken: do not build one.
//
// # The codec
//
// The package uses the packets of this project, and not a client library. A client library
// acknowledges on its own, chooses the Packet Identifiers itself, and needs a Session in memory or
// in a file of its own; a link must do none of the three. A link has five goroutines while it is
// connected, all of which Close waits for.
package bridge
