//go:build lockcheck && (amd64 || arm64)

package lock

// current returns a number that no other goroutine has at the same time: the address at which the
// runtime keeps it.
func current() uintptr
