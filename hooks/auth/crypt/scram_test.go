package crypt_test

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/stretchr/testify/require"
	"github.com/xdg-go/scram"
)

// The tests of SCRAM in package auth have a client that was written for them. Here is one that was
// not.
func TestSCRAMWithAnotherLibrary(t *testing.T) {
	users, err := auth.NewUsers([]auth.User{
		{Name: "jane", Hash: auth.HashSCRAM("pencil", 0)},
		{Name: "a,b=c", Hash: auth.HashSCRAM("p,=ä", 4096)},
	})
	require.NoError(t, err)
	method := auth.SCRAM(auth.NewPasswords(users).Find)

	// authenticate returns both sides' opinions.
	authenticate := func(user, password string) (client, server error) {
		c, err := scram.SHA256.NewClient(user, password, "")
		require.NoError(t, err)
		conv := c.NewConversation()
		r := &hooks.ConnectRequest{Client: &hooks.Client{ID: "c"}, Connect: &packets.Connect{},
			Grant: new(hooks.Grant)}
		x, err := method.Start(t.Context(), r)
		require.NoError(t, err)
		message, err := conv.Step("")
		require.NoError(t, err)
		for done := false; !done; {
			var reply []byte
			reply, done, err = x.Next(t.Context(), []byte(message))
			if err != nil {
				return conv2err(conv), err
			}
			if message, err = conv.Step(string(reply)); err != nil {
				return err, nil
			}
		}
		require.Equal(t, user, r.Grant.Identity.Principal)
		return conv2err(conv), nil
	}
	client, server := authenticate("jane", "pencil")
	require.NoError(t, server)
	require.NoError(t, client, "the client has verified the server")
	client, server = authenticate("a,b=c", "p,=ä")
	require.NoError(t, server)
	require.NoError(t, client)

	for _, wrong := range [][2]string{{"jane", "pencils"}, {"jane", ""}, {"joe", "pencil"}} {
		client, server = authenticate(wrong[0], wrong[1])
		require.Equal(t, packets.NotAuthorized, packets.CodeOf(server), "%s", wrong)
		require.Error(t, client)
	}
}

// conv2err says whether the client is convinced.
func conv2err(c *scram.ClientConversation) error {
	if c.Done() && c.Valid() {
		return nil
	}
	return packets.Errorf(packets.NotAuthorized, "not verified")
}
