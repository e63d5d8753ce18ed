package traffic

import (
	"reflect"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each counter is added up, whoever counts.
func TestTotal(t *testing.T) {
	var all Shards
	var over sync.WaitGroup
	for range 20 {
		over.Go(func() {
			shard := all.Shard()
			for range 100 {
				var c Counts
				v := reflect.ValueOf(&c).Elem()
				for i := range v.NumField() {
					v.Field(i).SetUint(uint64(i + 1))
				}
				shard.Take(&c)
				require.Zero(t, c)
				shard.Take(&c)
			}
		})
	}
	over.Wait()
	v := reflect.ValueOf(all.Total())
	for i := range v.NumField() {
		require.EqualValues(t, 2000*(i+1), v.Field(i).Uint(), v.Type().Field(i).Name)
	}
}
