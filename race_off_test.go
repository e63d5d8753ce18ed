//go:build !race

package dunlin

const raceDetector = false
