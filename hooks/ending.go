package hooks

import (
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file holds why connections end and are refused.

// EndCause is why a connection ended, or was refused. Some Reason Codes stand for several causes.
type EndCause byte

// The causes of an Ending. Those before EndAddressBanned are of connections that were accepted; a
// client whose CONNECT was not accepted can have them as well.
const (
	// EndUnknown: the error says no more than its text.
	EndUnknown EndCause = iota
	// EndClient: the client sent DISCONNECT.
	EndClient
	// EndClientWithWill: the client sent DISCONNECT and asked for its Will.
	EndClientWithWill
	// EndClientFailed: the client sent DISCONNECT with the Reason Code of a failure.
	EndClientFailed
	// EndConnectionLost: the client closed the connection without DISCONNECT, or the network did.
	EndConnectionLost
	// EndWriteFailed: the client took no bytes for the time of WriteTimeout, or the network failed
	// while the broker wrote.
	EndWriteFailed
	// EndKeepAlive: the client sent nothing for one and a half times its Keep Alive.
	EndKeepAlive
	// EndTakenOver: another connection came with the same Client Identifier.
	EndTakenOver
	// EndShutdown: the broker was closed.
	EndShutdown
	// EndKicked: the program ended the connection.
	EndKicked
	// EndMoved: the program sent the client to another server.
	EndMoved
	// EndSessionDeleted: the program deleted the Session.
	EndSessionDeleted
	// EndBanned: the client, its user or its address was banned while it was connected.
	EndBanned
	// EndAuthExpired: the client did not authenticate anew in time.
	EndAuthExpired
	// EndQueueFull: the queue was full, and the overflow policy says to disconnect.
	EndQueueFull
	// EndMemory: the broker is at its memory limit.
	EndMemory
	// EndMalformed: a packet could not be decoded.
	EndMalformed
	// EndProtocolError: a packet was against the rules.
	EndProtocolError
	// EndPacketTooLarge: a packet was larger than the broker accepts.
	EndPacketTooLarge
	// EndReceiveMaximum: the client had more QoS 1 and 2 messages open than it may.
	EndReceiveMaximum
	// EndTopicAlias: a Topic Alias was not valid.
	EndTopicAlias
	// EndTopic: a Topic Name or Topic Filter was not acceptable.
	EndTopic
	// EndNotSupported: the client used what the CONNACK said is not available: a QoS, retained
	// messages, shared subscriptions, wildcards, Subscription Identifiers.
	EndNotSupported
	// EndNotAuthorized: a hook refused the client, or a message before MQTT 5.0.
	EndNotAuthorized
	// EndQuota: the client reached a limit.
	EndQuota
	// EndStore: the Store failed.
	EndStore
	// EndPanic: a hook or the broker itself panicked while it served the client.
	EndPanic

	// Refusals.

	// EndAddressBanned: the address is banned.
	EndAddressBanned
	// EndAddressLimit: the address has too many connections, or makes them too fast.
	EndAddressLimit
	// EndListenerFull: the listener has MaxConnections connections.
	EndListenerFull
	// EndServerBusy: the broker has too many connections, or too many without CONNECT.
	EndServerBusy
	// EndNoConnect: no CONNECT came in time.
	EndNoConnect
	// EndNotMQTT: the first packet was not a CONNECT: another protocol, or TLS.
	EndNotMQTT
	// EndTLS: the TLS handshake failed.
	EndTLS
	// EndVersion: the protocol version is not accepted.
	EndVersion
	// EndClientID: the Client Identifier is not valid.
	EndClientID
	// EndOtherPrincipal: the Client Identifier belongs to another principal.
	EndOtherPrincipal
	// EndClientBanned: the client or its user is banned.
	EndClientBanned
	// EndBadPassword: the User Name or the password was wrong.
	EndBadPassword
	// EndBadMethod: the Authentication Method is not known.
	EndBadMethod
	// EndSlowedDown: too many authentications have failed before.
	EndSlowedDown
	// EndHookFailed: a hook that had to decide failed.
	EndHookFailed
	// EndWill: the Will was not acceptable.
	EndWill
	// EndTooManySessions: the broker has MaxSessions Sessions.
	EndTooManySessions
	// EndPrincipalLimit: the principal is at one of its limits.
	EndPrincipalLimit

	endCauses
)

var endNames = [endCauses]string{
	"unknown", "client disconnected", "client disconnected, with Will", "client reported a failure",
	"connection lost", "write failed", "keep alive timeout", "taken over", "broker closed",
	"kicked",
	"moved to another server", "session deleted", "banned", "authentication expired", "queue full",
	"out of memory", "malformed packet", "protocol error", "packet too large",
	"receive maximum exceeded", "topic alias invalid", "topic not accepted", "not supported",
	"not authorized", "quota exceeded", "store failed", "panic",
	"address banned", "address at a limit", "listener full", "server busy", "no CONNECT",
	"not MQTT",
	"TLS handshake failed", "protocol version not accepted", "client identifier not valid",
	"client identifier of another principal", "client banned", "bad user name or password",
	"authentication method not known", "slowed down after failures", "hook failed",
	"will not accepted", "too many sessions", "principal at a limit",
}

// String returns the cause in a few words.
func (c EndCause) String() string {
	if c < endCauses {
		return endNames[c]
	}
	return "unknown"
}

// EndCauses returns all causes, in their order.
func EndCauses() []EndCause {
	all := make([]EndCause, endCauses)
	for i := range all {
		all[i] = EndCause(i)
	}
	return all
}

// An Ending is a connection that ended, or that was refused. The same client that is refused, or
// ends, for the same cause from the same host again and again is one Ending with a Count.
type Ending struct {
	// Refused is true if the connection ended before its CONNECT was accepted.
	Refused bool
	Cause   EndCause
	Code    packets.ReasonCode
	// Err is the text of the error, empty where the client disconnected.
	Err string
	// ClientID, Principal and User are as far as they are known. Nothing has verified them if the
	// connection was refused.
	ClientID, Principal, User string
	// Address is the remote address. Listener is the name of the listener, see ServeListener.
	Address, Listener string
	Version           packets.Version
	// ConnectedAt is when the connection came, EndedAt when it ended: of the last one. First is
	// when the first one ended.
	ConnectedAt, EndedAt, First time.Time
	// SessionExpiry is how long the Session was to stay. Zero: it ended with the connection.
	SessionExpiry time.Duration
	Count         uint64
	// Number tells two Endings apart, and is larger for the later one, also if both ended at once.
	Number uint64
}
