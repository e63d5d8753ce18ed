package bridge

import (
	"fmt"
	"strings"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// Check says what is wrong with t.
func (t *Topic) Check() error {
	if t.QoS > packets.QoS2 {
		return fmt.Errorf("topic %q: QoS %d, at most 2 is possible", t.Filter, t.QoS)
	}
	if t.Direction > DirectionBoth {
		return fmt.Errorf("topic %q: %d is not a Direction", t.Filter, t.Direction)
	}
	if t.Filter == "" && (t.LocalPrefix == "" || t.RemotePrefix == "") {
		return fmt.Errorf("a topic without Filter needs LocalPrefix and RemotePrefix")
	}
	for _, p := range []string{t.LocalPrefix, t.RemotePrefix} {
		if p != "" && !packets.ValidTopicName(p) {
			return fmt.Errorf("topic %q: %q is not the beginning of a topic", t.Filter, p)
		}
		f := p + t.Filter
		if _, inner, err := packets.SplitShared(f); err != nil || inner != f ||
			!packets.ValidTopicFilter(f) {
			return fmt.Errorf("topic %q: %q is not a valid Topic Filter", t.Filter, f)
		}
	}
	return nil
}

// out and in are the two directions.
func (t *Topic) out() bool { return t.Direction != DirectionIn }
func (t *Topic) in() bool  { return t.Direction != DirectionOut }

// there returns the name that a topic of this broker has at the remote one. The first Topic that
// matches counts.
func (l *Link) there(topic string) (name string, ok bool) {
	for i := range l.Topics {
		t := &l.Topics[i]
		if t.out() && packets.MatchTopic(t.LocalPrefix+t.Filter, topic) {
			return t.RemotePrefix + strings.TrimPrefix(topic, t.LocalPrefix), true
		}
	}
	return "", false
}

// here returns the name that a topic of the remote broker has at this one.
func (l *Link) here(topic string) (name string, ok bool) {
	for i := range l.Topics {
		t := &l.Topics[i]
		if t.in() && packets.MatchTopic(t.RemotePrefix+t.Filter, topic) {
			return t.LocalPrefix + strings.TrimPrefix(topic, t.RemotePrefix), true
		}
	}
	return "", false
}

// filters returns what the link subscribes to: here, for what goes out, or there.
func (l *Link) filters(there bool, most packets.QoS) (subs []packets.Subscription) {
	at := map[string]int{}
	for i := range l.Topics {
		t := &l.Topics[i]
		f, wanted := t.LocalPrefix+t.Filter, t.out()
		if there {
			f, wanted = t.RemotePrefix+t.Filter, t.in()
		}
		if !wanted {
			continue
		}
		q := min(t.QoS, most)
		if k, twice := at[f]; twice {
			subs[k].QoS = max(subs[k].QoS, q)
			continue
		}
		at[f] = len(subs)
		subs = append(subs, packets.Subscription{Filter: f, QoS: q,
			NoLocal: true, RetainAsPublished: true, RetainHandling: 1})
	}
	return subs
}

// highest returns the highest QoS of a direction.
func (l *Link) highest(there bool) (q packets.QoS) {
	for _, s := range l.filters(there, packets.QoS2) {
		q = max(q, s.QoS)
	}
	return q
}

// growth is how much longer a packet may become on its way out, or in.
func (l *Link) growth(in bool) (n int) {
	for i := range l.Topics {
		d := len(l.Topics[i].RemotePrefix) - len(l.Topics[i].LocalPrefix)
		if in {
			d = -d
		}
		n = max(n, d)
	}
	return n
}
