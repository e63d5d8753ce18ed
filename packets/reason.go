package packets

import (
	"errors"
	"fmt"
	"strings"
)

// A ReasonCode is the result of an operation (2.4). Values from 0x80 are failures. It is not an
// error; see Error.
type ReasonCode byte

// The Reason Codes, in the order of the table in 2.4. Three names share the value 0x00.
const (
	Success                             ReasonCode = 0x00
	NormalDisconnection                 ReasonCode = 0x00 // of DISCONNECT
	GrantedQoS0                         ReasonCode = 0x00 // of SUBACK
	GrantedQoS1                         ReasonCode = 0x01
	GrantedQoS2                         ReasonCode = 0x02
	DisconnectWithWill                  ReasonCode = 0x04
	NoMatchingSubscribers               ReasonCode = 0x10
	NoSubscriptionExisted               ReasonCode = 0x11
	ContinueAuthentication              ReasonCode = 0x18
	ReAuthenticate                      ReasonCode = 0x19
	UnspecifiedError                    ReasonCode = 0x80
	MalformedPacket                     ReasonCode = 0x81
	ProtocolError                       ReasonCode = 0x82
	ImplementationSpecificError         ReasonCode = 0x83
	UnsupportedProtocolVersion          ReasonCode = 0x84
	ClientIdentifierNotValid            ReasonCode = 0x85
	BadUserNameOrPassword               ReasonCode = 0x86
	NotAuthorized                       ReasonCode = 0x87
	ServerUnavailable                   ReasonCode = 0x88
	ServerBusy                          ReasonCode = 0x89
	Banned                              ReasonCode = 0x8A
	ServerShuttingDown                  ReasonCode = 0x8B
	BadAuthenticationMethod             ReasonCode = 0x8C
	KeepAliveTimeout                    ReasonCode = 0x8D
	SessionTakenOver                    ReasonCode = 0x8E
	TopicFilterInvalid                  ReasonCode = 0x8F
	TopicNameInvalid                    ReasonCode = 0x90
	PacketIdentifierInUse               ReasonCode = 0x91
	PacketIdentifierNotFound            ReasonCode = 0x92
	ReceiveMaximumExceeded              ReasonCode = 0x93
	TopicAliasInvalid                   ReasonCode = 0x94
	PacketTooLarge                      ReasonCode = 0x95
	MessageRateTooHigh                  ReasonCode = 0x96
	QuotaExceeded                       ReasonCode = 0x97
	AdministrativeAction                ReasonCode = 0x98
	PayloadFormatInvalid                ReasonCode = 0x99
	RetainNotSupported                  ReasonCode = 0x9A
	QoSNotSupported                     ReasonCode = 0x9B
	UseAnotherServer                    ReasonCode = 0x9C
	ServerMoved                         ReasonCode = 0x9D
	SharedSubscriptionsNotSupported     ReasonCode = 0x9E
	ConnectionRateExceeded              ReasonCode = 0x9F
	MaximumConnectTime                  ReasonCode = 0xA0
	SubscriptionIdentifiersNotSupported ReasonCode = 0xA1
	WildcardSubscriptionsNotSupported   ReasonCode = 0xA2
)

// Sets of packet types that share Reason Codes.
const (
	inConnack    = 1 << TypeConnack
	inPuback     = 1<<TypePuback | 1<<TypePubrec
	inPubrel     = 1<<TypePubrel | 1<<TypePubcomp
	inSuback     = 1 << TypeSuback
	inUnsuback   = 1 << TypeUnsuback
	inDisconnect = 1 << TypeDisconnect
	inAuth       = 1 << TypeAuth
)

// reasons is the table of 2.4. Codes outside the table have no name and are not valid in any
// packet.
var reasons = [256]struct {
	name string
	in   uint16 // set of packet types
}{
	Success: {"Success",
		inConnack | inPuback | inPubrel | inSuback | inUnsuback | inDisconnect | inAuth},
	GrantedQoS1:            {"Granted QoS 1", inSuback},
	GrantedQoS2:            {"Granted QoS 2", inSuback},
	DisconnectWithWill:     {"Disconnect with Will Message", inDisconnect},
	NoMatchingSubscribers:  {"No matching subscribers", inPuback},
	NoSubscriptionExisted:  {"No subscription existed", inUnsuback},
	ContinueAuthentication: {"Continue authentication", inAuth},
	ReAuthenticate:         {"Re-authenticate", inAuth},
	UnspecifiedError: {"Unspecified error",
		inConnack | inPuback | inSuback | inUnsuback | inDisconnect},
	MalformedPacket: {"Malformed Packet", inConnack | inDisconnect},
	ProtocolError:   {"Protocol Error", inConnack | inDisconnect},
	ImplementationSpecificError: {"Implementation specific error",
		inConnack | inPuback | inSuback | inUnsuback | inDisconnect},
	UnsupportedProtocolVersion: {"Unsupported Protocol Version", inConnack},
	ClientIdentifierNotValid:   {"Client Identifier not valid", inConnack},
	BadUserNameOrPassword:      {"Bad User Name or Password", inConnack},
	NotAuthorized: {"Not authorized",
		inConnack | inPuback | inSuback | inUnsuback | inDisconnect},
	ServerUnavailable:        {"Server unavailable", inConnack},
	ServerBusy:               {"Server busy", inConnack | inDisconnect},
	Banned:                   {"Banned", inConnack},
	ServerShuttingDown:       {"Server shutting down", inDisconnect},
	BadAuthenticationMethod:  {"Bad authentication method", inConnack | inDisconnect},
	KeepAliveTimeout:         {"Keep Alive timeout", inDisconnect},
	SessionTakenOver:         {"Session taken over", inDisconnect},
	TopicFilterInvalid:       {"Topic Filter invalid", inSuback | inUnsuback | inDisconnect},
	TopicNameInvalid:         {"Topic Name invalid", inConnack | inPuback | inDisconnect},
	PacketIdentifierInUse:    {"Packet Identifier in use", inPuback | inSuback | inUnsuback},
	PacketIdentifierNotFound: {"Packet Identifier not found", inPubrel},
	ReceiveMaximumExceeded:   {"Receive Maximum exceeded", inDisconnect},
	TopicAliasInvalid:        {"Topic Alias invalid", inDisconnect},
	PacketTooLarge:           {"Packet too large", inConnack | inDisconnect},
	MessageRateTooHigh:       {"Message rate too high", inDisconnect},
	QuotaExceeded:            {"Quota exceeded", inConnack | inPuback | inSuback | inDisconnect},
	AdministrativeAction:     {"Administrative action", inDisconnect},
	PayloadFormatInvalid:     {"Payload format invalid", inConnack | inPuback | inDisconnect},
	RetainNotSupported:       {"Retain not supported", inConnack | inDisconnect},
	QoSNotSupported:          {"QoS not supported", inConnack | inDisconnect},
	UseAnotherServer:         {"Use another server", inConnack | inDisconnect},
	ServerMoved:              {"Server moved", inConnack | inDisconnect},

	SharedSubscriptionsNotSupported: {"Shared Subscriptions not supported",
		inSuback | inDisconnect},
	ConnectionRateExceeded: {"Connection rate exceeded", inConnack | inDisconnect},
	MaximumConnectTime:     {"Maximum connect time", inDisconnect},
	SubscriptionIdentifiersNotSupported: {"Subscription Identifiers not supported",
		inSuback | inDisconnect},
	WildcardSubscriptionsNotSupported: {"Wildcard Subscriptions not supported",
		inSuback | inDisconnect},
}

// String returns the standard's name for the code, "Success" for 0x00, and a number for an
// undefined code.
func (c ReasonCode) String() string {
	if s := reasons[c].name; s != "" {
		return s
	}
	return fmt.Sprintf("ReasonCode(0x%02X)", byte(c))
}

// Failed reports whether the code stands for a failure: 0x80 or more.
func (c ReasonCode) Failed() bool { return c >= 0x80 }

// ValidIn reports whether the standard lists the code for packets of type t (2.4). It is false for
// types without a Reason Code.
func (c ReasonCode) ValidIn(t Type) bool { return t <= TypeAuth && reasons[c].in>>t&1 != 0 }

// ReturnCode returns the 3.1.1 CONNACK return code that is nearest to c (3.1.1, 3.2.2.3). If c is a
// failure and the result is 0, no return code fits: the server closes the connection without a
// CONNACK [v3.1.1 MQTT-3.2.2-6].
func (c ReasonCode) ReturnCode() byte {
	switch c {
	case UnsupportedProtocolVersion:
		return 1
	case ClientIdentifierNotValid:
		return 2
	case ServerUnavailable, ServerBusy, UseAnotherServer, ServerMoved, QuotaExceeded,
		ConnectionRateExceeded:
		return 3
	case BadUserNameOrPassword:
		return 4
	case NotAuthorized, Banned, BadAuthenticationMethod:
		return 5
	default:
		return 0
	}
}

// An Error is a failure with a Reason Code. Every decoding error is an *Error, except ErrShort.
type Error struct {
	Code   ReasonCode // a failure: 0x80 or more
	Reason string     // for people; may be sent to the peer as Reason String; may be empty
	Err    error      // the cause, for logs and errors.Is; never sent; may be nil

	// ServerReference names the servers that the client should use instead (4.11), such as
	// "mqtt2.example.com:1883", several of them separated by spaces. A broker sends it to a client
	// of 5.0 in a CONNACK or DISCONNECT with the code UseAnotherServer or ServerMoved, if the
	// packet stays within the client's Maximum Packet Size. It is not sent if it is not a UTF-8
	// Encoded String. Empty: none.
	ServerReference string
	// UserProperties are sent to a client of 5.0 in a CONNACK or DISCONNECT, each of them if the
	// packet stays within the client's Maximum Packet Size. Make them with AppendUser. A broker
	// sends no other properties of this list, and none at all if Check refuses the list. Nil: none.
	UserProperties Properties
}

// Errorf returns an Error. Its Reason is the formatted text, which may be sent to the peer. Its Err
// is the error that %w wraps, if any.
func Errorf(code ReasonCode, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Reason: err.Error(), Err: errors.Unwrap(err)}
}

// Error returns the name of the code, the Server Reference, the reason, and the cause unless the
// reason already ends with it.
func (e *Error) Error() string {
	s := e.Code.String()
	if e.ServerReference != "" {
		s += " (" + e.ServerReference + ")"
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Err != nil && !strings.HasSuffix(e.Reason, e.Err.Error()) {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the Reason Code of the first *Error in err's tree. It returns UnspecifiedError if
// err has no *Error or the code is not a failure, and Success if err is nil.
func CodeOf(err error) ReasonCode {
	if err == nil {
		return Success
	}
	if e, ok := errors.AsType[*Error](err); ok && e != nil && e.Code.Failed() {
		return e.Code
	}
	return UnspecifiedError
}
