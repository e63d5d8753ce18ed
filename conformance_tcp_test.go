package dunlin

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/conformance"
	"github.com/dunlin-mqtt/dunlin/internal/script"
)

// TestConformanceOverTCP runs the scripts over TCP. Left out are those that need virtual time.
func TestConformanceOverTCP(t *testing.T) {
	scripts, err := conformance.Scripts()
	require.NoError(t, err)
	run, timed := 0, 0
	for _, s := range scripts {
		if s.Timed() {
			timed++
			continue
		}
		run++
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, overTCP(t, s))
		})
	}
	require.GreaterOrEqual(t, run, 1400, "scenarios over TCP")
	require.LessOrEqual(t, timed, len(scripts)/10, "scenarios left out")
	t.Logf("%d scenarios over TCP, %d left out: they need virtual time", run, timed)
}

// overTCP runs s with a Broker of its own.
func overTCP(t *testing.T, s *script.Script) error {
	cfg, err := configFor(s.Config)
	require.NoError(t, err)
	h, err := newTCPHarness(cfg)
	require.NoError(t, err)
	defer h.Close()
	if err := s.Run(h); err != nil {
		return err
	}
	for _, l := range h.links {
		if l.failed != nil {
			return l.failed
		}
	}
	return nil
}

// A client that expects nothing over TCP would be content if it only looked too early.
func TestWhatIsNotExpectedIsSeenOverTCP(t *testing.T) {
	for _, tt := range []struct{ name, lines string }{
		{"an answer", "s> PINGREQ"},
		{"a message of another client", "p> PUBLISH topic=a payload=x"},
		{"a message from itself", "s> PUBLISH topic=a payload=x"},
		{"the Will of a client that is cut", "p> close"},
		{"the Will of a client that errs", "p> raw 00 00"},
		{"a retained message",
			"p> PUBLISH retain topic=r payload=x\ns> SUBSCRIBE id=2 filter=r:0\ns< SUBACK id=2 " +
				"codes=00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all, err := script.Parse(t.Name(), `
s> CONNECT v=5 client=s clean
s< CONNACK code=0x00
s> SUBSCRIBE id=1 filter=a:0
s< SUBACK id=1 codes=00
p> CONNECT v=5 client=p clean will-topic=a will-payload=bye
p< CONNACK code=0x00
s< idle
`+tt.lines+"\ns< idle\n")
			require.NoError(t, err)
			require.ErrorContains(t, overTCP(t, all[0]), "s: P")
		})
	}
}
