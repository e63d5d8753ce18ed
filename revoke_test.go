package dunlin

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// changing are rules that forbid one client to subscribe once that is said.
type changing struct {
	hooks.Reloads
	denied atomic.Bool
	who    string
}

func (r *changing) Authorize(_ context.Context, q *hooks.AccessRequest) error {
	if q.Action == hooks.ActionSubscribe && q.Client.ID == r.who && r.denied.Load() {
		return packets.Errorf(packets.NotAuthorized, "no longer")
	}
	return nil
}

// deny forbids it, and tells the Broker.
func (r *changing) deny() {
	r.denied.Store(true)
	r.Reloaded()
}

// A shared subscription that is revoked while the store is full keeps what it has brought until
// that can go to another member. The client that may no longer have it does not get it, whenever
// the process ends.
func TestARevokedSharedSubscriptionLosesNothingWhileTheStoreIsFull(t *testing.T) {
	for kind := range fullKinds {
		for _, crashes := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, ", crash ", crashes), func(t *testing.T) {
				onStage(t, func(st *stage) {
					rules := &changing{who: "a"}
					st.restart(func(c *Config) { c.Authorizer = rules })
					a := st.durable("a", packets.V5)
					a.subscribe("$share/g/t/+", packets.QoS2)
					a.nc.Close()
					synctest.Wait()
					p := st.clean("p")
					var want []string
					for i := range 6 {
						q := packets.QoS(1 + i%2)
						p.send(message2(fmt.Sprint("t/", i%3), fmt.Sprint(i), q, uint16(i+1)))
						want = append(want, fmt.Sprint(i))
					}
					require.Len(t, p.got(), 6, "acknowledgements")
					b := st.durable("b", packets.V5)
					b.subscribe("$share/g/t/+", packets.QoS2)
					time.Sleep(time.Second)
					st.fullFor(kind)
					rules.deny()
					time.Sleep(time.Second)
					if crashes {
						st.crash()
						b = st.dial("b", packets.V5, false, 3600)
					}
					a = st.dial("a", packets.V5, false, 3600)
					time.Sleep(time.Second)
					require.Empty(t, a.payloads(), "a may not have them")
					st.roomAgain()
					require.Empty(t, a.payloads(), "a may not have them")
					got := b.payloads()
					for i, m := range want {
						n := len(slices.DeleteFunc(slices.Clone(got),
							func(x string) bool { return x != m }))
						require.Positive(t, n, "%s was acknowledged", m)
						require.False(t, n > 1 && i%2 == 1, "%s of QoS 2 came %d times", m, n)
					}
					time.Sleep(time.Second) // the acknowledgements are durable
					st.crash()
					a, b = st.dial("a", packets.V5, false, 3600),
						st.dial("b", packets.V5, false, 3600)
					require.Empty(t, a.payloads())
					require.Empty(t, b.payloads())
				})
			})
		}
	}
}

// A message that the store has refused after its subscription was revoked is its publisher's again:
// it does not go to another member as well.
func TestWhatIsRefusedAfterItsSubscriptionIsRevokedDoesNotMove(t *testing.T) {
	onStage(t, func(st *stage) {
		rules := &changing{who: "a"}
		st.restart(func(c *Config) { c.Authorizer = rules })
		a := st.durable("a", packets.V5)
		a.subscribe("$share/g/t", packets.QoS2)
		a.nc.Close()
		b := st.clean("b")
		p := st.clean("p")
		time.Sleep(time.Second)
		st.fullFor("no room for what adds")
		release := st.store.hold()
		p.send(message2("t", "refused", packets.QoS2, 1))
		b.subscribe("$share/g/t", packets.QoS2)
		rules.deny()
		time.Sleep(time.Second)
		b.wantNothing("whether the message is stored is not decided")
		release()
		require.Equal(t, packets.QuotaExceeded, p.want(packets.TypePubrec)[0].(*packets.Ack).Code)
		st.roomAgain()
		b.wantNothing("its publisher sends it again")
	})
}
