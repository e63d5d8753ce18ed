package quic

import (
	"math"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each number of the Options at its edges: a client still gets through.
func TestOptionsAtTheirEdges(t *testing.T) {
	typ := reflect.TypeFor[Options]()
	n := 0
	for i := range typ.NumField() {
		for _, edge := range []int64{math.MinInt64, -1, math.MaxInt64} {
			var o Options
			f := reflect.ValueOf(&o).Elem().Field(i)
			if !f.CanInt() {
				continue
			}
			n++
			f.SetInt(edge)
			t.Run(typ.Field(i).Name, func(t *testing.T) {
				l := listen(t, o)
				qc, err := dial(t, l, ALPN)
				require.NoError(t, err, "%+v", o)
				served(t, l, qc)
			})
		}
	}
	require.NotZero(t, n)
}
