//go:build !lockcheck

package lock

import (
	"log/slog"
	"sync"
)

// A Mutex is a sync.Mutex.
type Mutex[R Ranked] struct{ sync.Mutex }

// A RWMutex is a sync.RWMutex.
type RWMutex[R Ranked] struct{ sync.RWMutex }

// Checked says whether this is the build that checks.
const Checked = false

// NoneHeld marks a place at which the goroutine must hold no lock. what says what happens there.
func NoneHeld(what string) {}

// Brief marks a place at which the goroutine must hold no lock, and which does not wait: a
// goroutine that serves many may come there.
func Brief(what string) {}

// Inside says that the goroutine holds a lock of somebody else's, with the Rank of R, until it
// calls leave.
func Inside[R Ranked]() (leave func()) { return nothing }

func nothing() {}

// Handler returns h.
func Handler(h slog.Handler) slog.Handler { return h }
