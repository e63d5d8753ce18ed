//go:build !goroutines

package dunlin

// autoLoops says whether EventLoopsAuto may be EventLoopsOn. With the tag goroutines it may not,
// and so all tests run that way, too.
const autoLoops = true
