package admin

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/listeners"
)

// A stream goes on for days: a role that was taken away must end it.
func TestAStreamEndsWithTheRole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Bool
		b := newBench(t, func(o *Options) {
			o.Authorize = func(r *http.Request) (Identity, error) {
				if gone.Load() {
					return Identity{User: "actor"}, nil
				}
				return byRole(r)
			}
		})
		synctest.Wait()
		r := b.read(b.serve()())
		began := time.Now()
		for time.Since(began) < 3*heartbeat {
			next(t, r, "stats")
		}
		gone.Store(true)
		var err error
		for err == nil && time.Since(began) < 10*heartbeat {
			_, err = r.ReadString('\n')
		}
		require.ErrorIs(t, err, io.EOF)
		require.LessOrEqual(t, time.Since(began), 4*heartbeat+time.Second)
	})
}

func TestAServersReadTimeoutEndsNoStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		synctest.Wait()
		l := listeners.NewMemory()
		srv := &http.Server{Handler: b.h, ReadTimeout: 2 * heartbeat}
		go srv.Serve(l) // ends with srv
		t.Cleanup(func() { srv.Close() })
		c, err := l.Dial()
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		r := b.read(c)
		for began := time.Now(); time.Since(began) < 4*heartbeat; {
			next(t, r, "stats")
		}
	})
}

func TestAnActionThatPanicsIsAudited(t *testing.T) {
	b := newBench(t)
	b.h.routes = nil
	x := &route{h: b.h, method: "POST", path: api + "/break", role: RoleAct,
		serve: func(c *call) error { c.about = "it"; panic("broken") }}
	b.h.mux.Handle("POST "+x.path, x)
	require.PanicsWithValue(t, "broken", func() {
		b.h.ServeHTTP(httptest.NewRecorder(), b.request("POST", x.path, "{}"))
	})
	all := b.h.audit.newest(10)
	require.Len(t, all, 1)
	require.Equal(t, "break", all[0].value.Action)
	require.Equal(t, "it", all[0].value.About)
	require.Contains(t, all[0].value.Err, "panic")
}
