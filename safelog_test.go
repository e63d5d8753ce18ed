package dunlin

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A badHandler panics with each line.
type badHandler struct{ lines *atomic.Int64 }

func (badHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h badHandler) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h badHandler) WithGroup(string) slog.Handler          { return h }
func (h badHandler) Handle(context.Context, slog.Record) error {
	h.lines.Add(1)
	panic("the handler's own fault")
}

// A slog.Handler that panics loses its lines: on the goroutine of a connection, and on the
// committer's when the store fails and recovers. All goes on.
func TestALogThatPanicsEndsNothing(t *testing.T) {
	onStage(t, func(st *stage) {
		h := badHandler{new(atomic.Int64)}
		st.restart(func(c *Config) { c.Logger = slog.New(h) })
		more := func(what string) {
			require.Positive(st.t, h.lines.Swap(0), "a line %s", what)
		}
		c := st.durable("s", packets.V5)
		c.subscribe("t", packets.QoS1)
		more("of a connection")
		st.store.fail(store.ErrFull)
		m := &Message{Topic: "t", QoS: packets.QoS1}
		require.Error(st.t, st.b.Publish(st.t.Context(), m))
		more("of the committer")
		st.roomAgain()
		more("of the committer, when there is room again")
		c.got() // at QoS 1 the refused message may have gone out before the store was asked
		require.NoError(st.t, st.b.Publish(st.t.Context(), m))
		c.want(packets.TypePublish)
		c.nc.Close()
		time.Sleep(time.Second)
		more("of the end of a connection")
	})
}
