package hooks

import "github.com/dunlin-mqtt/dunlin/packets"

// A Subscription is one that the server makes for a client, without a SUBSCRIBE: by Grant, or with
// SubscribeClient and SubscribePrincipal of the broker. The Authorizer is not asked about it. A
// client can have one of its own to the same filter; then each message comes once.
type Subscription struct {
	// The Filter is as a client would write it, without the mount point, and may be a shared one.
	// RetainHandling 0 sends retained messages each time that the subscription is made, also when
	// it exists already; 1 sends them if it is new; 2 does not send them.
	packets.Subscription
	// ClientMayRemove lets an UNSUBSCRIBE of the client end the subscription, for all that it was
	// made for. Otherwise that UNSUBSCRIBE is refused with Not authorized (0x87), which clients
	// before 5.0 do not see.
	ClientMayRemove bool
}
