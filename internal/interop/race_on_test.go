//go:build race

package interop

// raceEnabled says whether the tests, and so the broker too, are built with the race detector.
const raceEnabled = true
