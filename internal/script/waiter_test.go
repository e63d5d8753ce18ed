package script

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A slowBroker is a fakeBroker whose links bring one byte at a time. Recv brings what has come so
// far.
type slowBroker struct{ fakeBroker }

type slowLink struct{ *fakeLink }

func (b *slowBroker) Open(name string) (Link, error) {
	l, err := b.fakeBroker.Open(name)
	return &slowLink{l.(*fakeLink)}, err
}

func (l *slowLink) Recv() ([]byte, bool) { return nil, false }

func (l *slowLink) Await() ([]byte, bool) {
	if len(l.out) == 0 {
		return nil, l.closed
	}
	b := l.out[:1]
	l.out = l.out[1:]
	return b, false
}

func TestRunAwaitsWhatHasToCome(t *testing.T) {
	for _, tt := range []struct{ name, lines, err string }{
		{"a packet", "c1< PUBACK id=1\nc1< PUBREC id=2", ""},
		{"a group", "{\nc1< PUBREC id=2\nc1< PUBACK id=1\n}", ""},
		{"bytes", "c1< raw 40 02 00 01\nc1< raw 50 02 00 02", ""},
		{"a packet that need not come, before one that does",
			"c1< DISCONNECT?\nc1< PUBACK id=1\nc1< PUBREC id=2", ""},
		{"the end", "c1< PUBACK id=1\nc1< PUBREC id=2\nc1< closed", ""},
		{"nothing, with a packet that need not come",
			"c1< PUBACK id=1\nc1< PUBREC id=2\nc1< PUBREL? id=2\nc1< idle", ""},
		{"one packet too many", "c1< PUBACK id=1\nc1< PUBREC id=2\nc1< PUBREL id=2",
			"got:    the end of the connection"},
		{"another packet than the end", "c1< closed", "got:    c1: PUBACK id=1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &slowBroker{fakeBroker{answer: acks("PUBACK id=1", "PUBREC id=2", "close")}}
			err := parseOne(t, hello+"c1> PUBLISH qos=1 id=1 topic=a\n"+tt.lines).Run(b)
			if tt.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tt.err)
			}
		})
	}
}

func TestTimed(t *testing.T) {
	for lines, want := range map[string]bool{
		"c1> PINGREQ":                                    false,
		"advance 1s":                                     true,
		"c1> CONNECT client=c keepalive=2":               true,
		"c1> CONNECT client=c keepalive=60":              false,
		"c1> CONNECT client=c session-expiry-interval=1": true,
		"c1> CONNECT client=c will-topic=w will.will-delay-interval=10": true,
		"c1< CONNACK session-expiry-interval=1":                         false,
		"c1< PUBLISH message-expiry-interval=100":                       true,
		"c1< PUBLISH !message-expiry-interval":                          false,
		"{\nc1< PUBLISH message-expiry-interval=100\n}":                 true,
		"config server-keep-alive=10\nc1> PINGREQ":                      true,
		"config sys-interval=10s\nc1> PINGREQ":                          true,
		"config max-session-expiry=60s\nc1> PINGREQ":                    false,
		"config max-inflight=1 max-qos=0 no-retain\nc1> close":          false,
	} {
		require.Equal(t, want, parseOne(t, lines).Timed(), lines)
	}
}
