package why

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

func TestTheNearestFilterAndHowItDiffers(t *testing.T) {
	for _, x := range []struct {
		topic, nearest, difference string
		others                     []string
	}{
		{"a/b/c", "a/B/c", `level 2 is "B", the topic has "b": upper and lower case differ`,
			[]string{"x/#", "a/d/c"}},
		{"a/b/c", "/a/b/c", "the filter begins with a slash, the topic does not", []string{"a/b"}},
		{"/a/b", "a/+", "the topic begins with a slash, the filter does not", []string{"a/b/c"}},
		{"a/b", "a/b/", "the filter ends with a slash, the topic does not", []string{"a/c"}},
		{"a/b/", "a/b", "the topic ends with a slash, the filter does not", []string{"a/c"}},
		{"a/b", "a/b ", `level 2 is "b ", the topic has "b": they differ in spaces`,
			[]string{"a/c"}},
		{"a/b/c", "a/b", "the topic has 3 levels, the filter has 2", []string{"b/b"}},
		{"a/b", "a/b/c", "the filter has 3 levels, the topic has 2", []string{"b/b/#"}},
		{"a/b/c/d", "a/b/x/#", `level 3 is "x", the topic has "c"`, []string{"y/b/c/d", "z"}},
		{"a", "b", `level 1 is "b", the topic has "a"`, nil},
		{"a", "", "", nil},
	} {
		filters := x.others
		if x.nearest != "" {
			filters = append([]string{x.nearest}, filters...)
			filters[0], filters[len(filters)-1] = filters[len(filters)-1], filters[0]
		}
		nearest, difference := Nearest(filters, x.topic)
		require.Equal(t, x.nearest, nearest, "%q", x.topic)
		require.Equal(t, x.difference, difference, "%q", x.topic)
	}
}

// sound is a Session with nothing in the way.
var sound = State{Connected: true, QueueMost: 10, QueueMostBytes: 1000, Window: 10,
	UnsentMost: 1000}

func TestWhatIsInTheWayOfTheNextMessage(t *testing.T) {
	set := func(f func(s *State)) State { s := sound; f(&s); return s }
	away := set(func(s *State) { s.Connected = false })
	for name, x := range map[string]struct {
		s      State
		q0, q1 hooks.Cause
	}{
		"nothing":            {sound, hooks.CauseNone, hooks.CauseNone},
		"the client is away": {away, hooks.CauseOfflineQoS0, hooks.CauseOffline},
		"and QoS 0 is kept": {
			set(func(s *State) { s.Connected = false; s.KeepsQoS0 = true }), hooks.CauseOffline,
			hooks.CauseOffline,
		},
		"and there is no memory": {
			set(func(s *State) { s.Connected, s.KeepsQoS0, s.Memory = false, true, true }),
			hooks.CauseMemory, hooks.CauseOffline,
		},
		"the window": {set(func(s *State) { s.Inflight = 10 }), hooks.CauseNone,
			hooks.CauseWindowFull},
		"the queue": {set(func(s *State) { s.Queued = 10 }), hooks.CauseNone,
			hooks.CauseQueueFull},
		"its bytes": {set(func(s *State) { s.QueuedBytes = 1000 }), hooks.CauseNone,
			hooks.CauseQueueFull},
		"the socket": {set(func(s *State) { s.Unsent = 1001 }), hooks.CauseSlowClient,
			hooks.CauseSlowClient},
		"half of it": {set(func(s *State) { s.Unsent = 600 }), hooks.CauseNone,
			hooks.CauseSlowClient},
		"the CONNACK": {
			set(func(s *State) { s.Opening = true }), hooks.CauseConnecting, hooks.CauseConnecting,
		},
		"the end": {set(func(s *State) { s.Stopping = true }), hooks.CauseDisconnecting,
			hooks.CauseDisconnecting},
		"the store": {
			set(func(s *State) { s.Stored = true; s.StoreErr = errors.New("x") }), hooks.CauseNone,
			hooks.CauseStoreFails,
		},
		"the memory": {set(func(s *State) { s.Memory = true; s.Unsent = 1 }), hooks.CauseMemory,
			hooks.CauseNone},
		"a program that does not read": {
			set(func(s *State) { s.Program = true; s.Queued = 10 }), hooks.CauseQueueFull,
			hooks.CauseQueueFull,
		},
		"and makes publishers wait": {
			set(func(s *State) { s.Program, s.Blocking = true, true; s.Queued = 10 }),
			hooks.CauseBlocked, hooks.CauseBlocked,
		},
		"the principal": {
			set(func(s *State) { s.PrincipalFull = true }), hooks.CauseNone,
			hooks.CausePrincipalFull,
		},
	} {
		require.Equal(t, x.q0, x.s.InTheWay(packets.QoS0), "%s, QoS 0", name)
		require.Equal(t, x.q1, x.s.InTheWay(packets.QoS1), "%s, QoS 1", name)
	}
}

func TestWhatMattersMostComesFirst(t *testing.T) {
	f := &Facts{
		ClientID: "c", Topic: "t", Session: true, State: sound,
		Filters: []Filter{{Filter: "t", QoS: 1, NoLocal: true, Matches: true}},
		Drop:    &hooks.Drop{Time: time.Now(), Count: 2, Reason: hooks.DropExpired},
	}
	f.State.Inflight = 10
	found, qos := Explain(f)
	require.Equal(t, packets.QoS1, qos)
	var causes []hooks.Cause
	for _, d := range found {
		require.NotEmpty(t, d.Text)
		require.Equal(t, "t", d.Filter)
		causes = append(causes, d.Cause)
	}
	require.Equal(t, []hooks.Cause{hooks.CauseWindowFull, hooks.CauseExpired,
		hooks.CauseNoLocal}, causes)
	require.Contains(t, found[1].Text, "one of 2 since")
}

func TestEachReasonOfADropHasACause(t *testing.T) {
	for r := hooks.DropReason(1); r.String() != "unknown"; r++ {
		if r != hooks.DropOverRate { // which is about the publisher
			require.NotZero(t, ofDrops[r], "%v", r)
		}
	}
}
