package dunlin

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Authenticate decides as a CONNECT is decided, and fills in who the client is.
func TestAuthenticate(t *testing.T) {
	onStage(t, func(st *stage) {
		asked, refused := 0, 0
		st.restart(func(c *Config) {
			c.MaxAuthFailures, c.ConnectTimeout = 3, time.Second
			c.Authenticator = hooks.AuthenticatorFunc(
				func(ctx context.Context, r *hooks.ConnectRequest) error {
					asked++
					switch string(r.Connect.Password) {
					case "panic":
						panic("in the Authenticator")
					case "slow":
						<-ctx.Done()
						return ctx.Err()
					case "bad grant":
						r.Grant.MountPoint = "$x"
						return nil
					case "right":
						r.Grant.Identity.Principal, r.Grant.ClientID = "p", "given"
						return nil
					}
					return packets.Errorf(packets.BadUserNameOrPassword, "no")
				})
			c.Observer = &hooks.Observer{Refused: func(hooks.Refused) { refused++ }}
		})
		try := func(password string) (*hooks.Client, error) {
			c := &hooks.Client{Username: "u", HasUsername: true, RemoteAddr: tcpAddr("10.0.0.9")}
			r := &hooks.ConnectRequest{Client: c, Connect: &packets.Connect{HasUsername: true,
				Username: "u", HasPassword: true, Password: []byte(password)}}
			return c, st.b.Authenticate(st.t.Context(), r)
		}
		code := func(want ReasonCode, password string) {
			t.Helper()
			_, err := try(password)
			require.Equal(t, want, packets.CodeOf(err), "%v", err)
		}
		c, err := try("right")
		require.NoError(t, err)
		require.Equal(t, "p", c.Identity.Principal)
		require.Equal(t, "given", c.ID)
		code(packets.NotAuthorized, "bad grant")
		code(packets.NotAuthorized, "slow") // which is no failed login
		code(packets.NotAuthorized, "panic")
		code(packets.BadUserNameOrPassword, "wrong")
		code(packets.BadUserNameOrPassword, "wrong")
		was := asked
		code(packets.ConnectionRateExceeded, "right")
		require.Equal(t, was, asked, "nobody looks at it")
		require.Equal(t, 6, refused)
		time.Sleep(time.Minute)
		for _, x := range []Ban{{Kind: BanUser, Value: "p"}, {Kind: BanClient, Value: "given"},
			{Kind: BanUser, Value: "u"}, {Kind: BanAddress, Value: "10.0.0.0/24"}} {
			require.NoError(t, st.b.Ban(x))
			code(packets.Banned, "right")
			require.Error(t, st.b.Barred(c))
			st.b.Unban(x.Kind, x.Value)
			require.NoError(t, st.b.Barred(c))
		}
		st.b.Close()
		_, err = try("right")
		require.ErrorIs(t, err, ErrBrokerClosed)
	})
}
