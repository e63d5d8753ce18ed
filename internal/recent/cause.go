package recent

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file finds out why a connection ended. Most Reason Codes say so. Where one code stands for
// several causes, the error is marked by who makes it.

// marked is an error with a cause. It has the text of the error that it wraps, if any.
type marked struct {
	cause hooks.EndCause
	err   error
}

func (m marked) Error() string {
	if m.err == nil {
		return ""
	}
	return m.err.Error()
}

func (m marked) Unwrap() error { return m.err }

// Mark returns err with a cause, nil if err is nil.
func Mark(cause hooks.EndCause, err error) error {
	if err == nil {
		return nil
	}
	return marked{cause, err}
}

// As returns a copy of err with a cause. Its text stays as it is.
func As(cause hooks.EndCause, err *packets.Error) *packets.Error {
	x := *err
	x.Err = marked{cause, err.Err}
	return &x
}

// CauseOf returns why a connection ended with err; refused says that its CONNECT was not accepted.
func CauseOf(err error, refused bool) hooks.EndCause {
	if m, ok := errors.AsType[marked](err); ok {
		return m.cause
	}
	pe, ok := errors.AsType[*packets.Error](err)
	if !ok || pe == nil {
		return ofNetwork(err, refused)
	}
	if refused {
		if c := refusals[pe.Code]; c != 0 {
			return c
		}
	}
	return ends[pe.Code]
}

// ofNetwork is CauseOf for an error that is not of the protocol.
func ofNetwork(err error, refused bool) hooks.EndCause {
	_, record := errors.AsType[tls.RecordHeaderError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	op, sent := errors.AsType[*net.OpError](err)
	alert = alert || sent && (op.Op == "remote error" || op.Op == "local error") // of package tls
	_, network := errors.AsType[net.Error](err)
	switch {
	case err == nil:
		return hooks.EndClient
	case record, alert, certificate, strings.HasPrefix(err.Error(), "tls: "):
		return hooks.EndTLS
	case refused && errors.Is(err, os.ErrDeadlineExceeded):
		return hooks.EndNoConnect
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, io.ErrClosedPipe), errors.Is(err, syscall.ECONNRESET), network:
		return hooks.EndConnectionLost
	}
	return hooks.EndUnknown
}

// ends are the causes by Reason Code of connections that were accepted.
var ends = map[packets.ReasonCode]hooks.EndCause{
	packets.MalformedPacket:                     hooks.EndMalformed,
	packets.ProtocolError:                       hooks.EndProtocolError,
	packets.ImplementationSpecificError:         hooks.EndStore,
	packets.NotAuthorized:                       hooks.EndNotAuthorized,
	packets.BadUserNameOrPassword:               hooks.EndNotAuthorized,
	packets.BadAuthenticationMethod:             hooks.EndBadMethod,
	packets.ServerUnavailable:                   hooks.EndStore,
	packets.ServerBusy:                          hooks.EndServerBusy,
	packets.Banned:                              hooks.EndBanned,
	packets.ServerShuttingDown:                  hooks.EndShutdown,
	packets.KeepAliveTimeout:                    hooks.EndKeepAlive,
	packets.SessionTakenOver:                    hooks.EndTakenOver,
	packets.TopicFilterInvalid:                  hooks.EndTopic,
	packets.TopicNameInvalid:                    hooks.EndTopic,
	packets.ReceiveMaximumExceeded:              hooks.EndReceiveMaximum,
	packets.TopicAliasInvalid:                   hooks.EndTopicAlias,
	packets.PacketTooLarge:                      hooks.EndPacketTooLarge,
	packets.MessageRateTooHigh:                  hooks.EndQuota,
	packets.QuotaExceeded:                       hooks.EndQuota,
	packets.AdministrativeAction:                hooks.EndKicked,
	packets.PayloadFormatInvalid:                hooks.EndProtocolError,
	packets.RetainNotSupported:                  hooks.EndNotSupported,
	packets.QoSNotSupported:                     hooks.EndNotSupported,
	packets.UseAnotherServer:                    hooks.EndMoved,
	packets.ServerMoved:                         hooks.EndMoved,
	packets.SharedSubscriptionsNotSupported:     hooks.EndNotSupported,
	packets.ConnectionRateExceeded:              hooks.EndSlowedDown,
	packets.MaximumConnectTime:                  hooks.EndAuthExpired,
	packets.SubscriptionIdentifiersNotSupported: hooks.EndNotSupported,
	packets.WildcardSubscriptionsNotSupported:   hooks.EndNotSupported,
}

// refusals are the causes that a Reason Code has before the CONNECT is accepted, where they differ.
var refusals = map[packets.ReasonCode]hooks.EndCause{
	packets.UnsupportedProtocolVersion: hooks.EndVersion,
	packets.ClientIdentifierNotValid:   hooks.EndClientID,
	packets.BadUserNameOrPassword:      hooks.EndBadPassword,
	packets.Banned:                     hooks.EndClientBanned,
	packets.TopicNameInvalid:           hooks.EndWill,
	packets.PayloadFormatInvalid:       hooks.EndWill,
	packets.RetainNotSupported:         hooks.EndWill,
	packets.QoSNotSupported:            hooks.EndWill,
}
