package jwt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// maxSet is the maximum size of a JSON Web Key Set, in bytes.
const maxSet = 1 << 20

// FetchOptions say how a KeyURL fetches keys. A negative duration means the default.
type FetchOptions struct {
	// Client makes the requests. Nil: http.DefaultClient.
	Client *http.Client
	// Timeout bounds the time of a request. Zero: 5 s.
	Timeout time.Duration
	// Refresh is the age of the keys after which the next token fetches them again. Zero: 15
	// minutes.
	Refresh time.Duration
	// Retry is the minimum time between the beginnings of two requests, whatever tokens arrive.
	// Zero: 30 s.
	Retry time.Duration
	// MaxAge is the age after which keys are no longer used, if they could not be fetched again.
	// Zero: 24 hours.
	MaxAge time.Duration
	// Report is called with the result of each request except the first. It may be nil. A panic of
	// it is ignored.
	Report func(error)
}

// A KeyURL is a KeySource that fetches keys from a URL and caches them. It makes one request at a
// time, and only when a token needs one. A token whose key is cached is verified at once, whatever
// the server does, until the keys are MaxAge old. A token whose key is not cached waits for one
// request, together with all others that arrive meanwhile. If a request fails, the cached keys
// stay.
type KeyURL struct {
	url string
	o   FetchOptions

	mu      sync.Mutex
	keys    *Keys     // guarded by mu
	fetched time.Time // when keys were; guarded by mu
	tried   time.Time // when the last request began; guarded by mu
	// Closed when the request in progress has ended; nil if there is none. Guarded by mu.
	request chan struct{}
}

// FetchKeys fetches a JSON Web Key Set. It ignores unusable keys, as OpenKeys does. It also ignores
// secrets, which must not be at a URL. Nil options mean the defaults. Use an https URL: whoever can
// forge the answer can forge tokens.
func FetchKeys(ctx context.Context, url string, o *FetchOptions) (*KeyURL, error) {
	k := &KeyURL{url: url}
	if o != nil {
		k.o = *o
	}
	if k.o.Client == nil {
		k.o.Client = http.DefaultClient
	}
	for _, d := range []struct {
		of  *time.Duration
		def time.Duration
	}{{&k.o.Timeout, 5 * time.Second}, {&k.o.Refresh, 15 * time.Minute},
		{&k.o.Retry, 30 * time.Second}, {&k.o.MaxAge, 24 * time.Hour}} {
		if *d.of <= 0 {
			*d.of = d.def
		}
	}
	k.tried = time.Now()
	keys, err := k.fetch(ctx)
	if err != nil {
		return nil, err
	}
	k.keys, k.fetched = keys, time.Now()
	return k, nil
}

// Find returns the keys with the identifier. If there is no usable one, it blocks until a request
// has ended, or ctx ends. It makes no request if the last one began less than FetchOptions.Retry
// ago.
func (k *KeyURL) Find(ctx context.Context, id string) ([]Key, error) {
	k.mu.Lock()
	found, err := k.findLocked(id)
	usable := err == nil && len(found) > 0
	stale, may := time.Since(k.fetched) >= k.o.Refresh, time.Since(k.tried) >= k.o.Retry
	if k.request == nil && may && (stale || !usable) {
		k.beginLocked()
	}
	request := k.request
	k.mu.Unlock()
	if usable || request == nil {
		return found, err
	}
	select {
	case <-request:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.findLocked(id)
}

// findLocked returns the cached keys with the identifier. It returns an error if they are too old.
func (k *KeyURL) findLocked(id string) ([]Key, error) {
	if age := time.Since(k.fetched); age >= k.o.MaxAge {
		return nil, fmt.Errorf("the keys of %s are %v old", k.url, age.Round(time.Second))
	}
	return k.keys.find(id), nil
}

// beginLocked begins a request. Several callers may wait for it. It continues if some of them give
// up.
func (k *KeyURL) beginLocked() {
	request := make(chan struct{})
	k.request, k.tried = request, time.Now()
	go func() { // ends with the time-out of the request at the latest
		keys, err := k.fetch(context.Background())
		k.report(err)
		k.mu.Lock()
		defer k.mu.Unlock()
		if err == nil {
			k.keys, k.fetched = keys, time.Now()
		}
		k.request = nil
		close(request)
	}()
}

// report calls Report. A panic there must not end the program.
func (k *KeyURL) report(err error) {
	if k.o.Report != nil {
		defer func() { _ = recover() }() // nobody is left to tell
		k.o.Report(err)
	}
}

// fetch gets the keys. A panic of the Client is an error.
func (k *KeyURL) fetch(ctx context.Context) (keys *Keys, err error) {
	ctx, cancel := context.WithTimeout(ctx, k.o.Timeout)
	defer cancel()
	defer func() {
		if v := recover(); v != nil {
			keys, err = nil, fmt.Errorf("jwt: %s: panic in the HTTP client: %v", k.url, v)
		}
	}()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return nil, fmt.Errorf("jwt: %w", err)
	}
	r.Header.Set("Accept", "application/json, application/jwk-set+json")
	answer, err := k.o.Client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("jwt: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("jwt: %s: status %s", k.url, answer.Status)
	}
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxSet+1))
	if err == nil && len(b) > maxSet {
		err = errors.New("a key set of more than 1 MiB")
	}
	if err != nil {
		return nil, fmt.Errorf("jwt: %s: %w", k.url, err)
	}
	if keys, err = parseSet(b, false); err != nil {
		return nil, fmt.Errorf("jwt: %s: %w", k.url, err)
	}
	return keys, nil
}
