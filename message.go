package dunlin

import "github.com/dunlin-mqtt/dunlin/store"

// A message is an Application Message on its way through the broker. It is immutable once it is shared: every queue,
// window and retained slot that holds the message holds this one. What differs per hop (DUP, QoS, RETAIN, Packet
// Identifier, aliases, subscription identifiers) is kept by those who send it. From is the Client Identifier of the publisher,
// for No Local; empty: in-process. Expires is in Unix nanoseconds; 0: never (3.3.2.3.3).
type message = store.Message
