//go:build lockcheck && !amd64 && !arm64

package lock

import (
	"bytes"
	"runtime"
	"strconv"
)

// current returns a number that no other goroutine has, read from its stack trace: slowly.
func current() uintptr {
	var b [64]byte
	line := b[:runtime.Stack(b[:], false)]
	number, _, _ := bytes.Cut(bytes.TrimPrefix(line, []byte("goroutine ")), []byte(" "))
	n, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil {
		panic("BUG: a stack trace that does not begin with the number of its goroutine")
	}
	return uintptr(n)
}
