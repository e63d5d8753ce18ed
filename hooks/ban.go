package hooks

import (
	"fmt"
	"time"
)

// BanKind is the kind of a Ban.
type BanKind byte

const (
	// BanAddress: an IP address ("192.0.2.7") or network ("2001:db8::/32"). The broker closes its
	// connections before it reads anything.
	BanAddress BanKind = iota + 1
	// BanClient: a Client Identifier, whoever uses it. The broker refuses its CONNECT with Banned
	// (0x8A).
	BanClient
	// BanUser: a User Name, before it is verified, or a Principal. The broker refuses its CONNECT
	// with Banned (0x8A).
	BanUser
	// BanSession: the Client Identifier of one principal, where SessionPerPrincipal of the broker's
	// Config gives each principal Sessions of its own. The Value is the Client Identifier, U+0000
	// and the Principal. For clients without Principal and User Name it is the Client Identifier
	// alone. The broker refuses the CONNECT of this principal with Banned (0x8A). Other principals
	// may still use the Client Identifier. Without SessionPerPrincipal only the broker makes such
	// a Ban, of whoever takes over in a loop under a name that is not verified.
	BanSession
)

// String returns "address", "client", "user" or "session".
func (k BanKind) String() string {
	switch k {
	case BanAddress:
		return "address"
	case BanClient:
		return "client"
	case BanUser:
		return "user"
	case BanSession:
		return "session"
	}
	return fmt.Sprintf("BanKind(%d)", byte(k))
}

// A Ban keeps an address, a client or a user out.
type Ban struct {
	Kind  BanKind
	Value string
	// Until is when the Ban ends. Zero: it has no end.
	Until time.Time
	// Reason is for logs and lists. The broker does not send it to clients.
	Reason string
}
