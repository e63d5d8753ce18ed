package recent

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestAMarkChangesNoTextAndIsFound(t *testing.T) {
	text := packets.Errorf(packets.AdministrativeAction, "banned").Error()
	err := As(hooks.EndBanned, packets.Errorf(packets.AdministrativeAction, "banned"))
	require.Equal(t, text, err.Error())
	require.Equal(t, hooks.EndBanned, CauseOf(fmt.Errorf("more: %w", err), false))
	require.Equal(t, packets.AdministrativeAction, packets.CodeOf(err))

	cause := errors.New("cause")
	err = As(hooks.EndHookFailed, &packets.Error{Code: packets.NotAuthorized, Err: cause})
	require.ErrorIs(t, err, cause)
	require.ErrorContains(t, err, "cause")
}

func TestCausesThatTheErrorTellsByItself(t *testing.T) {
	code := func(c packets.ReasonCode) error { return packets.Errorf(c, "") }
	for name, x := range map[string]struct {
		err     error
		refused bool
		want    hooks.EndCause
	}{
		"no error":              {nil, false, hooks.EndClient},
		"the end of the stream": {io.EOF, false, hooks.EndConnectionLost},
		"an error of the network": {&net.OpError{Op: "read", Err: errors.New("x")}, false,
			hooks.EndConnectionLost},
		"a deadline before the CONNECT": {os.ErrDeadlineExceeded, true, hooks.EndNoConnect},
		"no TLS":                        {tls.RecordHeaderError{Msg: "x"}, true, hooks.EndTLS},
		"an alert":                      {tls.AlertError(40), true, hooks.EndTLS},
		"something else":                {errors.New("x"), false, hooks.EndUnknown},
		"a banned client that connects": {code(packets.Banned), true, hooks.EndClientBanned},
		"a client that is banned":       {code(packets.Banned), false, hooks.EndBanned},
		"a password": {code(packets.BadUserNameOrPassword), true,
			hooks.EndBadPassword},
		"a re-authentication": {code(packets.BadUserNameOrPassword), false,
			hooks.EndNotAuthorized},
		"a code without a cause": {code(packets.UnspecifiedError), false,
			hooks.EndUnknown},
		"the Will of a CONNECT": {code(packets.QoSNotSupported), true, hooks.EndWill},
		"a PUBLISH with too high a QoS": {code(packets.QoSNotSupported), false,
			hooks.EndNotSupported},
		"a code that both have in common": {code(packets.MalformedPacket), true,
			hooks.EndMalformed},
	} {
		require.Equal(t, x.want, CauseOf(x.err, x.refused), name)
	}
}

func TestEachCauseHasAName(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range hooks.EndCauses() {
		require.NotEmpty(t, c.String())
		require.False(t, seen[c.String()], "%v twice", c)
		seen[c.String()] = true
	}
	seen = map[string]bool{}
	for _, c := range hooks.Causes() {
		require.NotEmpty(t, c.String())
		require.False(t, seen[c.String()], "%v twice", c)
		seen[c.String()] = true
	}
}
