package mux

import (
	"log/slog"
	"math"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/listeners"
	"github.com/stretchr/testify/require"
)

// Each number of the Options at its edges: a client still gets through.
func TestOptionsAtTheirEdges(t *testing.T) {
	typ := reflect.TypeFor[Options]()
	n := 0
	for i := range typ.NumField() {
		for _, edge := range []int64{math.MinInt64, -1, 1, math.MaxInt64} {
			var o Options
			f := reflect.ValueOf(&o).Elem().Field(i)
			if !f.CanInt() {
				continue
			}
			n++
			if edge == 1 && f.Type() == reflect.TypeFor[time.Duration]() {
				edge = int64(time.Second)
			}
			if edge == 1 {
				edge = 2 // one address gets half of the places
			}
			f.SetInt(edge)
			synctest.Test(t, func(t *testing.T) {
				below := listeners.NewMemory()
				m := New(below, o)
				branch := m.MQTT()
				b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll,
					Logger: slog.New(slog.DiscardHandler)})
				require.NoError(t, err)
				served := make(chan error, 2)
				go func() { served <- m.Serve() }()
				go func() { served <- b.Serve(branch) }()
				nc, err := below.Dial()
				require.NoError(t, err)
				mqttOver(t, nc)
				b.Close()
				m.Close()
				require.Error(t, <-served)
				require.Error(t, <-served)
			})
		}
	}
	require.NotZero(t, n)
}
