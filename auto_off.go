//go:build !eventloops

package dunlin

// autoLoops says whether EventLoopsAuto is EventLoopsOn. With the tag eventloops all tests run that
// way.
const autoLoops = false
