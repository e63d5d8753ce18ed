package webhook_test

import (
	"context"
	"math"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks/webhook"
	"github.com/stretchr/testify/require"
)

var edges = []int64{math.MinInt64, -1, 1, math.MaxInt64}

// Each number of the Options at its edges: questions are answered, also after the server has
// failed.
func TestOptionsAtTheirEdges(t *testing.T) {
	typ := reflect.TypeFor[webhook.Options]()
	n := 0
	for i := range typ.NumField() {
		for _, edge := range edges {
			if k := typ.Field(i).Type.Kind(); k != reflect.Int && k != reflect.Int64 {
				continue
			}
			n++
			synctest.Test(t, func(t *testing.T) {
				s := &server{body: `{"result":"allow"}`}
				a := s.authenticator(t, func(o *webhook.Options) {
					reflect.ValueOf(o).Elem().Field(i).SetInt(edge)
				})
				require.NoError(t, a.Authenticate(t.Context(), connect("x")), "%s %d",
					typ.Field(i).Name, edge)
				s.set(500, "", nil)
				require.Error(t, a.Authenticate(t.Context(), connect("y")))
				s.set(0, `{"result":"allow"}`, nil)
				time.Sleep(time.Minute)
				if !(typ.Field(i).Name == "BreakFor" && edge == math.MaxInt64) {
					require.NoError(t, a.Authenticate(t.Context(), connect("y")), "%s %d",
						typ.Field(i).Name, edge)
				}
			})
		}
	}
	require.NotZero(t, n)
}

// A negative time would have the circuit ask a server that is down again and again.
func TestANegativeBreakIsTheDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{status: 500}
		a := s.authenticator(t, func(o *webhook.Options) { o.BreakAfter, o.BreakFor = 1, -1 })
		for i := range 5 {
			require.Error(t, a.Authenticate(t.Context(), connect(string(rune('a'+i)))))
			time.Sleep(time.Second)
		}
		require.Equal(t, 1, s.questions())
	})
}

// Each number of the EventOptions at its edges: an event arrives, although the first attempt fails.
func TestEventOptionsAtTheirEdges(t *testing.T) {
	typ := reflect.TypeFor[webhook.EventOptions]()
	n := 0
	for i := range typ.NumField() {
		for _, edge := range edges {
			name := typ.Field(i).Name
			if k := typ.Field(i).Type.Kind(); k != reflect.Int && k != reflect.Int64 {
				continue
			}
			n++
			synctest.Test(t, func(t *testing.T) {
				s := &server{status: 500}
				e := s.events(t, func(o *webhook.EventOptions) {
					reflect.ValueOf(o).Elem().Field(i).SetInt(edge)
				})
				e.Observer().SessionEnded(ended("c"))
				if name == "Interval" && edge == math.MaxInt64 {
					go func() { _ = e.Close(context.Background()) }() // it is not sent before
				}
				time.Sleep(2 * time.Second)
				if name == "QueueBytes" && edge == 1 { // no event is that small
					require.EqualValues(t, 1, e.Dropped())
					require.NoError(t, e.Close(context.Background()))
					return
				}
				require.NotZero(t, s.questions(), "%s %d", name, edge)
				s.set(0, "", nil)
				time.Sleep(time.Minute)
				require.NoError(t, e.Close(context.Background()))
				if few := edge == 1 && (name == "Attempts" || name == "RetryMin" ||
					name == "RetryMax"); !few {
					require.Zero(t, e.Dropped(), "%s %d", name, edge)
				}
			})
		}
	}
	require.NotZero(t, n)
}
