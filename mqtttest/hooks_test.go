package mqtttest_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/webhook"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
)

// An HTTP client keeps a goroutine for each idle connection. Where a hook has made the connection,
// that goroutine is not the broker's.
func TestGoroutinesThatAHookKeepsAreNotTheBrokers(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"result": "allow"}`)
	}))
	defer server.Close()
	for name, auth := range map[string]hooks.Authenticator{
		"a client of the program": hooks.AuthenticatorFunc(func(context.Context,
			*hooks.ConnectRequest) error {
			resp, err := http.Get(server.URL)
			if err != nil {
				return err
			}
			io.Copy(io.Discard, resp.Body)
			return resp.Body.Close()
		}),
		"the one of hooks/webhook": webhookAuthenticator(t, server.URL),
	} {
		t.Run(name, func(t *testing.T) {
			require.Empty(t, runs(t, func(t testing.TB) {
				b := mqtttest.NewBroker(t,
					mqtttest.Config(func(c *dunlin.Config) { c.Authenticator = auth }))
				b.Client(t, "c1").Disconnect()
			}))
		})
	}
	http.DefaultClient.CloseIdleConnections()
}

func webhookAuthenticator(t *testing.T, url string) hooks.Authenticator {
	a, err := webhook.NewAuthenticator(webhook.Options{URL: url})
	require.NoError(t, err)
	return a
}
