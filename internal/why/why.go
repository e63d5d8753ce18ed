// Package why decides what keeps a message from a client. It is given facts, and knows no Session.
package why

import (
	"fmt"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A State is what a Session is like at a moment.
type State struct {
	Connected bool // there is a connection, or it is a Subscription of the program
	Opening   bool // whose CONNACK waits for the Store
	Stopping  bool // which is being ended
	Program   bool // a Subscription of the program
	Blocking  bool // which makes publishers wait if its queue is full

	Queued, QueueMost           int
	QueuedBytes, QueueMostBytes int
	PrincipalFull               bool
	Inflight, Window            int // sent and not acknowledged, and how many may be
	Unsent, UnsentMost          int // bytes that wait for the socket; beyond most QoS 0 is dropped
	KeepsQoS0                   bool
	Memory                      bool  // there is too little memory for QoS 0
	Stored                      bool  // the Store has the Session
	StoreErr                    error // why the Store fails, nil if it works
}

// InTheWay returns what keeps the next message of a QoS from the client, or delays it. CauseNone is
// nothing.
func (s *State) InTheWay(qos packets.QoS) hooks.Cause {
	waits := qos > packets.QoS0
	full := s.Queued >= s.QueueMost || s.QueuedBytes >= s.QueueMostBytes
	away := !s.Connected || s.Opening || s.Stopping
	switch {
	case waits && s.Stored && s.StoreErr != nil:
		return hooks.CauseStoreFails
	case away && !waits && !s.KeepsQoS0:
		return s.orAway(hooks.CauseOfflineQoS0)
	case away && !waits && s.Memory:
		return hooks.CauseMemory
	case full && s.Blocking:
		return hooks.CauseBlocked
	case full && (waits || away || s.Program):
		return hooks.CauseQueueFull
	case (waits || away) && s.PrincipalFull:
		return hooks.CausePrincipalFull
	case away:
		return s.orAway(hooks.CauseOffline)
	case !waits && s.Memory && s.Unsent > 0:
		return hooks.CauseMemory
	case s.Program:
	case s.Unsent > s.UnsentMost, waits && s.Unsent > s.UnsentMost/2:
		return hooks.CauseSlowClient
	case waits && s.Inflight >= s.Window:
		return hooks.CauseWindowFull
	}
	return hooks.CauseNone
}

// orAway returns c, or, where there is a connection that gets nothing, the cause of that.
func (s *State) orAway(c hooks.Cause) hooks.Cause {
	switch {
	case s.Connected && s.Opening:
		return hooks.CauseConnecting
	case s.Connected && s.Stopping:
		return hooks.CauseDisconnecting
	}
	return c
}

// A Filter is one subscription of the client.
type Filter struct {
	Group, Filter  string // without the mount point
	QoS            packets.QoS
	NoLocal        bool
	RetainHandling byte
	Matches        bool
	Wrote          []string // the filters of the client that a hook has replaced by this one
	Members        int      // of the group
	Member         string   // the one that got the last message of the group; empty: nobody has
}

// written is f as the client writes it.
func (f *Filter) written() string { return packets.JoinShared(f.Group, f.Filter) }

// Of is what is known of messages of the topic in the Session.
type Of struct {
	Queued, Expired int // in the queue; Expired of them have passed their Message Expiry Interval
	Unsent          int // in flight, and held until the Store has them
	Unacknowledged  int // sent
}

// A Retained is what is known of the retained message of the topic.
type Retained struct {
	There, TooLarge bool
	Waiting         bool // a subscription that matches still gets retained messages
}

// Facts are all that Explain decides by.
type Facts struct {
	ClientID, Topic string
	Now             time.Time
	Closed          bool

	TopicCause hooks.Cause // what is wrong with the topic by itself; CauseNone: nothing
	TopicText  string

	Session  bool
	Last     *hooks.Ending // the last end or refusal of the client, nil if none is known
	Ban      string        // why the client is banned, empty if it is not
	Mount    string
	Filters  []Filter
	Denied   string // what the Authorizer says to a subscription to the topic; empty: it allows it
	Undeliv  string // what it says to a delivery of it
	State    State
	Of       Of
	Retained Retained
	Drop     *hooks.Drop // the last one of the client and topic
}

// Explain returns what was found, most important first; if nothing is in the way, that is
// CauseNone. qos is the highest QoS of what matches.
func Explain(f *Facts) (found []hooks.Finding, qos packets.QoS) {
	x := explainer{Facts: f}
	switch {
	case f.Closed:
		x.add(hooks.CauseClosed, "The broker is closed.")
	case f.TopicCause != hooks.CauseNone && f.TopicCause != hooks.CauseTopicReserved:
		x.add(f.TopicCause, "%s", f.TopicText)
	case !f.Session:
		x.absent()
	default:
		x.present()
	}
	if f.TopicCause == hooks.CauseTopicReserved {
		x.add(f.TopicCause, "%s", f.TopicText)
	}
	if len(x.found) == 0 {
		x.add(hooks.CauseNone, "Nothing is in the way: %q gets the next message of %q.", f.ClientID,
			f.Topic)
		x.found[0].Filter = x.matched
	}
	return x.found, x.qos
}

type explainer struct {
	*Facts
	found   []hooks.Finding
	qos     packets.QoS
	matched string
}

func (x *explainer) add(c hooks.Cause, text string, args ...any) *hooks.Finding {
	x.found = append(x.found, hooks.Finding{Cause: c, Text: fmt.Sprintf(text, args...),
		Filter: x.matched})
	return &x.found[len(x.found)-1]
}

// absent finds out why there is no Session.
func (x *explainer) absent() {
	if x.Ban != "" {
		x.add(hooks.CauseBanned, "%s", x.Ban).Ending = x.Last
	}
	switch e := x.Last; {
	case e == nil && x.Ban != "":
	case e == nil:
		x.add(hooks.CauseUnknownClient,
			"No client %q is connected or has a Session, and no connection of it is remembered.",
			x.ClientID)
	case e.Refused:
		x.add(hooks.CauseRefused, "%q has no Session. Its last CONNECT, at %s, was refused: %s.",
			x.ClientID, stamp(e.EndedAt), reason(e)).Ending = e
	case e.SessionExpiry > 0 && !x.Now.Before(e.EndedAt.Add(e.SessionExpiry)):
		x.add(hooks.CauseSessionExpired, "The Session of %q expired after the connection ended "+
			"at %s.",
			x.ClientID, stamp(e.EndedAt)).Ending = e
	case e.Cause == hooks.EndSessionDeleted, e.SessionExpiry > 0:
		x.add(hooks.CauseSessionDeleted, "The Session of %q was deleted. Its last connection "+
			"ended at %s.",
			x.ClientID, stamp(e.EndedAt)).Ending = e
	default:
		x.add(hooks.CauseSessionEnded,
			"%q is not connected. Its Session ended with its connection, at %s: %s.",
			x.ClientID, stamp(e.EndedAt), reason(e)).Ending = e
	}
}

// stamp is a time as texts have it.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// reason is why a connection ended, in words.
func reason(e *hooks.Ending) string {
	if e.Err == "" || e.Cause.String() == e.Err {
		return e.Cause.String()
	}
	return e.Cause.String() + " (" + e.Err + ")"
}

// present finds out what keeps messages from a Session.
func (x *explainer) present() {
	if x.Ban != "" && !x.State.Connected {
		x.add(hooks.CauseBanned, "%s", x.Ban)
	}
	if e := x.Last; e != nil && e.Refused && e.Cause == hooks.EndOtherPrincipal {
		x.add(hooks.CauseOtherPrincipal, "The Session with the Client Identifier %q belongs to "+
			"another "+
			"principal. The client that connected with it at %s was refused for that.",
			x.ClientID, stamp(e.EndedAt)).Ending = e
	}
	if !x.match() {
		return
	}
	if x.Undeliv != "" {
		x.add(hooks.CauseNotAuthorized, "The Authorizer refuses deliveries of %q to %q: %s.",
			x.Topic, x.ClientID, x.Undeliv).Rule = x.Undeliv
	}
	now := x.State.InTheWay(x.qos)
	if x.Of.Unsent > 0 && now != hooks.CauseStoreFails {
		x.add(hooks.CauseNotCommitted, "%d messages of the topic wait until the Store has them.",
			x.Of.Unsent)
	}
	if now != hooks.CauseNone {
		x.add(now, "%s", x.stateText(now))
	}
	x.shared()
	x.dropped()
	if x.Of.Expired > 0 {
		x.add(hooks.CauseExpired, "%d messages of the topic in the queue have expired.",
			x.Of.Expired)
	}
	if n := x.Of.Unacknowledged; n > 0 {
		x.add(hooks.CauseUnacknowledged, "%d messages of the topic were sent. The client has not "+
			"acknowledged them.", n)
	}
	x.noLocal()
	x.retained()
}

// match says whether a subscription matches, and otherwise finds out why none does.
func (x *explainer) match() bool {
	for i := range x.Filters {
		if f := &x.Filters[i]; f.Matches {
			if x.matched == "" || f.Group == "" {
				x.matched = f.written()
			}
			x.qos = max(x.qos, f.QoS)
		}
	}
	topic, inside := strings.CutPrefix(x.Topic, x.Mount)
	switch {
	case x.matched != "":
		return true
	case len(x.Filters) > 0 && !inside:
		x.outside()
	case x.Denied != "":
		x.add(hooks.CauseNotAuthorized, "%q has no subscription that matches, and the Authorizer "+
			"refuses "+
			"one to %q: %s.", x.ClientID, topic, x.Denied).Rule = x.Denied
	case len(x.Filters) == 0:
		x.add(hooks.CauseNoSubscription, "%q has no subscription.", x.ClientID)
	}
	if len(x.Filters) > 0 && inside {
		x.near(topic)
	}
	return false
}

// outside is about a topic outside of the mount point.
func (x *explainer) outside() {
	d := x.add(hooks.CauseMountPoint, "The client has the mount point %q: it gets only topics "+
		"that "+
		"begin "+
		"with it. Its %q would be %q.", x.Mount, x.Topic, x.Mount+x.Topic)
	for i := range x.Filters {
		if f := &x.Filters[i]; packets.MatchTopic(f.Filter, x.Topic) {
			d.Nearest = f.written()
		}
	}
}

// near names the filter that comes closest to topic.
func (x *explainer) near(topic string) {
	names, filters := make([]string, len(x.Filters)), make([]string, len(x.Filters))
	for i := range x.Filters {
		f := &x.Filters[i]
		names[i], filters[i] = f.written(), f.Filter
		for _, wrote := range f.Wrote {
			if _, inner, err := packets.SplitShared(wrote); err == nil && packets.MatchTopic(inner,
				topic) {
				x.add(hooks.CauseFilterReplaced, "%q subscribed to %q, which matches %q. The "+
					"SubscribeInterceptor replaced that by %q, which does not.", x.ClientID, wrote,
					topic, names[i]).Nearest = names[i]
				return
			}
		}
		if strings.HasPrefix(topic, "$") && x.Mount == "" && packets.MatchTopic(f.Filter,
			"x"+topic[1:]) {
			x.add(hooks.CauseDollarTopic, "The filter %q does not match %q: a wildcard at the "+
				"beginning "+
				"does not match topics that begin with \"$\".", names[i], topic).Nearest = names[i]
			return
		}
	}
	nearest, how := Nearest(filters, topic)
	for i := range filters {
		if filters[i] == nearest {
			nearest = names[i]
			break
		}
	}
	x.add(hooks.CauseNoMatch, "None of the %d subscriptions of %q matches %q. The nearest is %q: "+
		"%s.",
		len(x.Filters), x.ClientID, topic, nearest, how).Nearest = nearest
}

// stateText is the sentence for what State.InTheWay returned.
func (x *explainer) stateText(c hooks.Cause) string {
	s := &x.State
	switch c {
	case hooks.CauseStoreFails:
		return fmt.Sprintf("The Store fails, and messages for this Session are refused: %v.",
			s.StoreErr)
	case hooks.CauseOfflineQoS0:
		return "The client is away, and messages of QoS 0 are not kept for it. It subscribes " +
			"with QoS " +
			"0, " +
			"or they are published with it."
	case hooks.CauseOffline:
		return fmt.Sprintf("The client is away. %d messages wait for it, %d of them of the topic.",
			s.Queued, x.Of.Queued)
	case hooks.CauseBlocked:
		return fmt.Sprintf("The Subscription has not read %d messages, and makes publishers wait.",
			s.Queued)
	case hooks.CauseQueueFull:
		return fmt.Sprintf("The queue is full: %d of %d messages, %d of %d bytes.",
			s.Queued, s.QueueMost, s.QueuedBytes, s.QueueMostBytes)
	case hooks.CausePrincipalFull:
		return "The queues of the principal's Sessions together are full."
	case hooks.CauseConnecting:
		return "The client is connecting: its CONNACK waits for the Store."
	case hooks.CauseDisconnecting:
		return "The connection is being ended."
	case hooks.CauseMemory:
		return "The broker is at its memory limit, and drops messages of QoS 0."
	case hooks.CauseSlowClient:
		return fmt.Sprintf("The client does not read: %d bytes wait for its socket.", s.Unsent)
	case hooks.CauseWindowFull:
		return fmt.Sprintf("The client has not acknowledged %d messages, as many as may be in "+
			"flight. "+
			"%d wait behind them, %d of them of the topic.", s.Inflight, s.Queued, x.Of.Queued)
	}
	return c.String()
}

// shared is about clients that have the topic by shared subscriptions only.
func (x *explainer) shared() {
	var other *Filter
	for i := range x.Filters {
		switch f := &x.Filters[i]; {
		case !f.Matches:
		case f.Group == "":
			return
		case f.Members > 1 && f.Member != "" && f.Member != x.ClientID:
			other = f
		}
	}
	if other == nil {
		return
	}
	d := x.add(hooks.CauseSharedOther, "The client has the topic by a shared subscription of %d "+
		"members: "+
		"each message goes to one of them. The last one went to %q.", other.Members, other.Member)
	d.Member, d.Filter = other.Member, other.written()
}

var ofDrops = map[hooks.DropReason]hooks.Cause{
	hooks.DropQueueFull:     hooks.CauseDroppedQueueFull,
	hooks.DropSlowClient:    hooks.CauseDroppedSlow,
	hooks.DropTooLarge:      hooks.CauseTooLarge,
	hooks.DropExpired:       hooks.CauseExpired,
	hooks.DropSessionEnded:  hooks.CauseDroppedSessionEnded,
	hooks.DropRefused:       hooks.CauseDroppedRefused,
	hooks.DropNotAuthorized: hooks.CauseDroppedNotAuthorized,
	hooks.DropMemory:        hooks.CauseDroppedMemory,
	hooks.DropIntercepted:   hooks.CauseDroppedNotAuthorized,
}

// dropped is about the last message of the topic that was lost.
func (x *explainer) dropped() {
	d := x.Drop
	if d == nil || ofDrops[d.Reason] == hooks.CauseNone {
		return
	}
	many := ""
	if d.Count > 1 {
		many = fmt.Sprintf(" It was one of %d since %s.", d.Count, stamp(d.First))
	}
	x.add(ofDrops[d.Reason], "The last message of the topic that did not arrive was dropped at "+
		"%s: "+
		"%v.%s",
		stamp(d.Time), d.Reason, many).Drop = d
}

// noLocal is about clients that do not get what they publish.
func (x *explainer) noLocal() {
	for i := range x.Filters {
		if f := &x.Filters[i]; f.Matches && !f.NoLocal {
			return
		}
	}
	x.add(hooks.CauseNoLocal, "The subscription has No Local: %q gets no messages that it "+
		"publishes "+
		"itself.",
		x.ClientID)
}

// retained is about the retained message.
func (x *explainer) retained() {
	r := &x.Retained
	switch {
	case !r.There:
		return
	case r.TooLarge:
		x.add(hooks.CauseTooLarge, "The retained message is larger than the client accepts.")
	case r.Waiting:
		x.add(hooks.CauseRetainedWaiting, "The retained messages for the subscription are still "+
			"being "+
			"sent.")
	}
	shared, never := true, true
	for i := range x.Filters {
		if f := &x.Filters[i]; f.Matches {
			shared = shared && f.Group != ""
			never = never && (f.Group != "" || f.RetainHandling == 2)
		}
	}
	switch {
	case shared:
		x.add(hooks.CauseRetainedNotSent, "The topic has a retained message. Shared "+
			"subscriptions do "+
			"not get those.")
	case never:
		x.add(hooks.CauseRetainedNotSent, "The topic has a retained message. The subscription "+
			"does not "+
			"ask "+
			"for those: its Retain Handling is 2.")
	}
}
