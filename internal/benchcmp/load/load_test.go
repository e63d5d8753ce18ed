package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
)

// broker serves on a free port and returns its address.
func broker(t *testing.T, cfg dunlin.Config) string {
	cfg.Authenticator = hooks.AllowAll
	b, err := dunlin.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { b.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go b.Serve(l) // ended by Close
	return l.Addr().String()
}

// measured runs the generator for a moment and returns its report.
func measured(t *testing.T, addr, flags string) map[string]any {
	var out bytes.Buffer
	args := strings.Fields("-json -warm 20ms -dur 100ms -settle 10ms -hold 10ms -addr " + addr +
		" " + flags)
	require.NoError(t, run(args, &out, io.Discard), out.String())
	var rep map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &rep))
	return rep
}

func TestEachScenarioRunsAndNothingIsLost(t *testing.T) {
	addr := broker(t, dunlin.Config{MaxQueuedMessages: 10_000})
	for _, flags := range []string{
		"-scenario p2p -pubs 3",
		"-scenario p2p -pubs 3 -v 5 -qos 1 -rate 2000 -batch 1",
		"-scenario p2p -pubs 3 -qos 2",
		"-scenario p2p -pubs 2 -size 65536 -batch 1 -e2e 4",
		"-scenario fanin -pubs 5 -subs 1 -e2e 50",
		"-scenario fanout -pubs 1 -subs 20 -e2e 20",
		"-scenario shared -pubs 3 -subs 3 -qos 1",
		"-scenario wild -topics 200 -subs 3 -pubs 2",
		"-scenario retained -count 300",
		"-scenario offline -subs 5 -count 20 -pubs 2",
	} {
		t.Run(flags, func(t *testing.T) {
			rep := measured(t, addr, flags)
			for _, name := range []string{"lost", "misordered", "dup", "malformed", "conn_errs"} {
				if x, ok := rep[name]; ok {
					require.Zero(t, x, name)
				}
			}
			got := rep["got"]
			if got == nil {
				got = rep["recv"]
			}
			require.Greater(t, got, 0.0, "messages came: %v", rep)
			require.NotContains(t, rep, "err")
		})
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	addr := broker(t, dunlin.Config{})
	rep := measured(t, addr, "-scenario idle -count 40 -idlesub -conc 4")
	require.EqualValues(t, 40, rep["conns"])
	require.EqualValues(t, 40, rep["ping_ok_of_50"])
	rep = measured(t, addr, "-scenario ping -count 10 -conc 4")
	require.Greater(t, rep["pings"], 0.0)
	require.Zero(t, rep["pings_unanswered"])
	for _, scenario := range []string{"storm", "reconnect", "takeover"} {
		rep = measured(t, addr, "-conc 4 -scenario "+scenario)
		require.Greater(t, rep["conn_per_s"], 0.0, scenario)
		require.Zero(t, rep["conn_errs"], scenario)
	}
}

func TestAMillionComeAndGo(t *testing.T) {
	addr := broker(t, dunlin.Config{})
	for _, flags := range []string{"", " -v 5 -qos 1"} {
		rep := measured(t, addr, "-scenario million -count 300 -pingevery 5ms -rate 2000"+flags)
		require.EqualValues(t, 300, rep["conns"])
		for _, none := range []string{"connect_refused", "back_refused", "ended", "lost",
			"pings_unanswered"} {
			require.Zero(t, rep[none], "%s: %v", none, rep)
		}
		require.GreaterOrEqual(t, rep["pings"], 300.0, "each connection is pinged")
		require.Greater(t, rep["got"], 100.0)
		require.Greater(t, rep["back_p99_us"], 0.0)
		require.NotContains(t, rep, "first_err")
	}
}

func TestAMillionOfABrokerWithTooFewPlaces(t *testing.T) {
	addr := broker(t, dunlin.Config{MaxConnections: 100})
	rep := measured(t, addr, "-scenario million -count 150")
	require.EqualValues(t, 100, rep["conns"])
	require.EqualValues(t, 50, rep["connect_refused"])
	require.Contains(t, rep["first_err"], "connection ")
	var out bytes.Buffer
	err := run(strings.Fields("-scenario million -count 2000000000 -addr "+addr), &out, io.Discard)
	require.ErrorContains(t, err, "ulimit -n")
}

func TestASubscriberThatDoesNotReadIsReported(t *testing.T) {
	rep := measured(t, broker(t, dunlin.Config{}),
		"-scenario slow -pubs 1 -subs 2 -rate 500 -e2e 0")
	require.EqualValues(t, 1, rep["stalled_subs"])
	require.Zero(t, rep["lost"], "the others lose nothing")
}

func TestMessagesThatAreLateTwiceOrMissingAreTold(t *testing.T) {
	s := &subscriber{from: make([]account, 1)}
	for _, seq := range []uint32{0, 1, 3, 2, 3, 6} {
		s.take(0, seq)
	}
	require.EqualValues(t, 1, s.mis, "2 came behind 3")
	require.EqualValues(t, 1, s.dup, "3 came twice")
	require.Len(t, s.from[0].missing, 2, "4 and 5 have not come")

	f := &flow{seen: make([][]uint64, 1)}
	s = &subscriber{from: make([]account, 1)}
	for _, seq := range []uint32{0, 2, 1, 2} {
		s.takeShared(f, 0, seq)
	}
	require.EqualValues(t, 1, f.seenTwice)
	require.EqualValues(t, 1, s.mis, "1 came behind 2; the second 2 counts as a duplicate only")
}

func TestBadFlagsAndBrokersAreErrors(t *testing.T) {
	for flags, want := range map[string]string{
		"-scenario nothing":               "unknown scenario",
		"-exec /nonexistent/broker":       "/nonexistent/broker",
		"-v 3":                            "-v is 4 or 5",
		"-qos 3":                          "-qos is 0, 1 or 2",
		"-scenario p2p -addr 127.0.0.1:1": "refused",
	} {
		var out bytes.Buffer
		err := run(strings.Fields(flags), &out, &out)
		require.ErrorContains(t, err, want, flags)
	}
}

func TestTheFloorPassesMessagesOn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go serveFloor(l) // ended by Close
	addr := l.Addr().String()
	rep := measured(t, addr, "-scenario p2p -pubs 2 -qos 0")
	require.Zero(t, rep["lost"])
	require.Greater(t, rep["recv"], 0.0)
}

func TestQuantiles(t *testing.T) {
	var h hist
	for i := range int64(1000) {
		h.add(i * 1000)
	}
	rep := report{}
	h.report(rep)
	require.InEpsilon(t, 500, rep["p50_us"], 0.05)
	require.InEpsilon(t, 990, rep["p99_us"], 0.05)
	require.InEpsilon(t, 999, rep["max_us"], 0.01)
}
