package dunlin

import (
	"context"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/internal/owners"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Connections of one principal that come at the same time are together no more than it may have:
// one counts from the moment on that it is admitted.
func TestConnectionsThatComeTogetherKeepToTheLimit(t *testing.T) {
	b := newTestBroker(t, func(c *Config) { c.MaxConnectionsPerPrincipal = 1 })
	a := &attachment{limits: b.ownerLimits(&hooks.Limits{})}
	come := func(id string) (*session, error) {
		here, there := net.Pipe()
		defer here.Close()
		c := newConn(b, context.Background(), there)
		c.client = &hooks.Client{ID: id, Username: "u", HasUsername: true}
		s := &session{out: newSender(b.memory), holder: b.holder(id, "", true, ""), b: b, id: id}
		return s, s.ownNew(c, a)
	}
	first, err := come("1")
	require.NoError(t, err)
	_, err = come("2")
	require.Equal(t, packets.QuotaExceeded, packets.CodeOf(err))
	owner := first.out.owner
	require.EqualValues(t, 1, owner.Used(owners.Connections))

	first.ended = true // it could not become one of the Sessions
	first.countLocked()
	require.Zero(t, owner.Used(owners.Connections))
	_, err = come("3")
	require.NoError(t, err)
	require.NoError(t, b.Close())
}
