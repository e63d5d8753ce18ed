// Package auth holds Authenticators: users with passwords from code ([NewUsers]) or from a password
// file of Mosquitto ([Open]), TLS client certificates ([Certificate], [Pinned]), clients without a
// name ([Anonymous]), and the Authentication Method SCRAM-SHA-256 ([SCRAM]). They abstain if a
// client brings nothing for them to check, so that they can be combined:
//
//	file, err := auth.Open("passwords")
//	...
//	config.Authenticator = hooks.ChainAuthenticators(
//		auth.Certificate(auth.CommonName), file, auth.Anonymous(true))
//	config.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{auth.SCRAMSHA256: file.SCRAM()}
//
// Each sets the Principal of the client's Identity to the name that it has verified. Access rules
// and the ownership of Sessions use the Principal, not the User Name of the CONNECT.
package auth

import (
	"context"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

var (
	errPassword  = packets.Errorf(packets.BadUserNameOrPassword, "bad user name or password")
	errAnonymous = packets.Errorf(packets.NotAuthorized, "a user name is required")
)

// Anonymous returns an Authenticator that accepts, or refuses with Not authorized (0x87), every
// client whose CONNECT has no User Name, and abstains from others. An empty User Name is a User
// Name.
func Anonymous(accept bool) hooks.Authenticator {
	return hooks.AuthenticatorFunc(func(_ context.Context, r *hooks.ConnectRequest) error {
		switch {
		case r.Client.HasUsername:
			return hooks.ErrAbstain
		case !accept:
			return errAnonymous
		}
		return nil
	})
}
