package websocket_test

import (
	"math"
	"reflect"
	"testing"

	ws "github.com/coder/websocket"
	"github.com/dunlin-mqtt/dunlin/listeners/websocket"
	"github.com/stretchr/testify/require"
)

// Each number of the Options at its edges: a client still gets through.
func TestOptionsAtTheirEdges(t *testing.T) {
	typ := reflect.TypeFor[websocket.Options]()
	n := 0
	for i := range typ.NumField() {
		for _, edge := range []int64{math.MinInt64, -1, math.MaxInt64} {
			var o websocket.Options
			f := reflect.ValueOf(&o).Elem().Field(i)
			if !f.CanInt() {
				continue
			}
			n++
			f.SetInt(edge)
			t.Run(typ.Field(i).Name, func(t *testing.T) {
				url, _ := serve(t, o)
				c := dial(t, url+"/mqtt", nil)
				require.NoError(t, c.Write(t.Context(), ws.MessageBinary,
					encode(t, connect, subscribe, publish)), "%+v", o)
				wantAll(t, c)
			})
		}
	}
	require.NotZero(t, n)
}
