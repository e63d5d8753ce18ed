package storetest_test

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/segment"
	"github.com/dunlin-mqtt/dunlin/store/storetest"
)

var t *testing.T // the argument of a test function

// The test of a store of your own. Put your Open in place of segment.Open.
func ExampleRun() {
	storetest.Run(t, func(t *testing.T) func() (store.Store, error) {
		dir := t.TempDir() // one for each subtest; the store is opened there again and again
		return func() (store.Store, error) { return segment.Open(dir, segment.Options{}) }
	})
}
