package dunlin

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store/memory"
)

// The rules may change while the broker is not there: what it has kept is decided when it is back.
func TestDecisionsAfterARestart(t *testing.T) {
	st := new(memory.Store)
	withStore := func(c *Config) { c.Store = st }
	will := func(p *packets.Connect, topic string) *packets.Connect {
		p.Will = &packets.Will{Topic: topic, Payload: []byte("w"),
			Properties: packets.Properties(nil).AppendUint(packets.WillDelayInterval, 100)}
		return p
	}
	withRules(t, everything, withStore, func(r *guardRig) {
		c, p := r.connect(as("c", "u")), r.connect(as("p", "p"))
		for _, f := range []string{"secret/#", "open/#", "$share/g/secret/#"} {
			c.subscribe(f, 1)
		}
		p.publish("secret/inflight", "", false)
		c.recv()
		c.recv() // one of them by the shared subscription; no PUBACK
		c.close()
		p.publish("secret/queued", "", false)
		p.publish("open/queued", "", false)
		p.close()
		r.connect(will(as("bad", "u"), "secret/will")).close()
		r.connect(will(as("good", "good"), "secret/good")).close()
		r.connect(as("anonymous", "-")).close()
		r.connect(as("unnamed", "")).close()
	})
	require.NoError(t, st.Open())
	withRules(t, []string{"deny user=u all secret/#", "allow all #"}, withStore, func(r *guardRig) {
		require.Equal(t, 6, r.b.Stats().Sessions)
		s := r.connect(as("s", "reader"))
		s.subscribe("secret/#", 1)
		for id, user := range map[string]string{"c": "bob", "anonymous": "", "unnamed": "-",
			"good": "-"} {
			r.refused(as(id, user), packets.ClientIdentifierNotValid)
		}
		c := r.connect(as("c", "u"))
		r.told("revoked c secret/#")
		c.message("open/queued")
		c.nothing("neither what was in flight nor what was queued, of a subscription that is not " +
			"allowed any more")
		info, _ := r.b.Session("c")
		require.Len(t, info.Subscriptions, 1)
		time.Sleep(200 * time.Second)
		s.message("secret/good")
		s.nothing("the Will of one who has lost the right")
		r.told("denied bad publish secret/will")
		c.close()
		s.close()
	})
	require.NoError(t, st.Open())
	withRules(t, everything, withStore, func(r *guardRig) { // what was revoked does not come back
		info, ok := r.b.Session("c")
		require.True(t, ok)
		require.Len(t, info.Subscriptions, 1)
		c := r.connect(as("c", "u"))
		c.nothing("nothing is left")
		c.close()
	})
}
