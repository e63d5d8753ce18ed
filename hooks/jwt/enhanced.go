package jwt

import (
	"context"
	"errors"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Method is the name of the Authentication Method by which clients send tokens, and a new token
// before the old one expires.
const Method = "JWT"

// Enhanced returns the Authentication Method. The Authentication Data of the CONNECT is the token.
// If the CONNECT has none, the broker answers with an AUTH packet, and the client sends the token
// in another. To re-authenticate, the client sends AUTH with Reason Code 0x19 and a new token for
// the same principal and tenant. A token that is not accepted is refused with Not authorized
// (0x87).
func (t *Tokens) Enhanced() hooks.EnhancedAuthenticator {
	return hooks.EnhancedAuthenticatorFunc(func(_ context.Context,
		r *hooks.ConnectRequest) (hooks.Exchange, error) {
		return &exchange{tokens: t, client: r.Client, grant: r.Grant, again: r.Connect == nil}, nil
	})
}

type exchange struct {
	tokens *Tokens
	client *hooks.Client
	grant  *hooks.Grant
	again  bool // the client has been accepted before
	asked  bool // for the token
}

// Next takes the token.
func (x *exchange) Next(ctx context.Context, data []byte) (reply []byte, done bool, err error) {
	if len(data) == 0 && !x.asked {
		x.asked = true
		return nil, false, nil
	}
	g, err := x.tokens.verify(ctx, string(data))
	if err == nil && x.again && (g.Identity.Principal != x.client.Identity.Principal ||
		g.Identity.Tenant != x.client.Identity.Tenant) {
		err = errors.New("a client that has become somebody else")
	}
	if err == nil && !x.again {
		err = x.tokens.checkUsername(x.client.Username, x.client.HasUsername, g.Identity.Principal)
	}
	if err != nil {
		err = refuse(packets.NotAuthorized, err)
		if pe, ok := errors.AsType[*packets.Error](err); ok && x.again {
			pe.Code = packets.NotAuthorized // the only one that a DISCONNECT can have
		}
		return nil, false, err
	}
	x.grant.Identity, x.grant.Expires = g.Identity, g.Expires
	return nil, true, nil
}
