//go:build !lockcheck

package lock

import (
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

type rank struct{}

func (rank) Rank() Rank { return Rank{} }

// Built as usual a lock takes what one of package sync takes, and a mark does nothing.
func TestUncheckedLocksAreThoseOfPackageSync(t *testing.T) {
	require.Equal(t, unsafe.Sizeof(sync.Mutex{}), unsafe.Sizeof(Mutex[rank]{}))
	require.Equal(t, unsafe.Sizeof(sync.RWMutex{}), unsafe.Sizeof(RWMutex[rank]{}))
	var a Mutex[rank]
	var b RWMutex[rank]
	require.Zero(t, testing.AllocsPerRun(10, func() {
		a.Lock()
		b.RLock()
		NoneHeld("a call")
		Inside[rank]()()
		b.RUnlock()
		a.Unlock()
	}))
}
