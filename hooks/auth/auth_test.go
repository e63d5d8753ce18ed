package auth_test

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
)

// connect returns the request of a client; "-" stands for an absent User Name or Password.
func connect(user, password string) *hooks.ConnectRequest {
	c := &packets.Connect{ClientID: "c"}
	if user != "-" {
		c.HasUsername, c.Username = true, user
	}
	if password != "-" {
		c.HasPassword, c.Password = true, []byte(password)
	}
	client := &hooks.Client{ID: c.ClientID, HasUsername: c.HasUsername, Username: c.Username}
	return &hooks.ConnectRequest{Client: client, Connect: c, Grant: new(hooks.Grant)}
}

func TestAnonymous(t *testing.T) {
	yes, no := auth.Anonymous(true), auth.Anonymous(false)
	require.NoError(t, yes.Authenticate(t.Context(), connect("-", "-")))
	require.Equal(t, packets.NotAuthorized,
		packets.CodeOf(no.Authenticate(t.Context(), connect("-", "-"))))
	for _, user := range []string{"", "u"} {
		require.ErrorIs(t, yes.Authenticate(t.Context(), connect(user, "p")), hooks.ErrAbstain,
			"a client with the User Name %q is not anonymous", user)
		require.ErrorIs(t, no.Authenticate(t.Context(), connect(user, "p")), hooks.ErrAbstain)
	}
}

func TestChainOfAuthenticators(t *testing.T) {
	users, err := auth.NewUsers([]auth.User{{Name: "u", Hash: auth.Hash("p", 1)}})
	require.NoError(t, err)
	chain := hooks.ChainAuthenticators(auth.Certificate(auth.CommonName), auth.NewPasswords(users),
		auth.Anonymous(true))
	for _, tt := range []struct {
		name, user, password string
		want                 packets.ReasonCode
	}{
		{"a right password", "u", "p", packets.Success},
		{"a wrong one", "u", "q", packets.BadUserNameOrPassword},
		{"an unknown user is not anonymous", "v", "p", packets.BadUserNameOrPassword},
		{"nor is an empty one", "", "", packets.BadUserNameOrPassword},
		{"no user name", "-", "-", packets.Success},
		{"no user name, but a password", "-", "p", packets.Success},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want,
				packets.CodeOf(chain.Authenticate(t.Context(), connect(tt.user, tt.password))))
		})
	}
}
