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

// maxSet is the most that a JSON Web Key Set may be, in bytes.
const maxSet = 1 << 20

// FetchOptions are how a KeyURL fetches. A negative duration means the default.
type FetchOptions struct {
	// Client makes the requests. Nil: http.DefaultClient.
	Client *http.Client
	// Timeout ends a request. Zero: 5 s.
	Timeout time.Duration
	// Refresh is the age at which the keys are fetched again, when the next token comes. Zero: 15
	// minutes.
	Refresh time.Duration
	// Retry is the least time between the beginnings of two requests, whatever tokens come. Zero: 30 s.
	Retry time.Duration
	// MaxAge is the age at which keys that could not be fetched again are not used any more. Zero: 24 hours.
	MaxAge time.Duration
	// Report is told the result of each request but the first. Nil: nobody is.
	Report func(error)
}

// A KeyURL is a KeySource from a URL, which keeps what it has fetched. It makes one request at a
// time, and none that no token asks for. A token whose key is there is verified with that key at
// once, whatever the server does, until the keys are MaxAge old. A token whose key is not there
// waits for one request, as do others that come at the same time. If a request fails the keys from
// before stay.
type KeyURL struct {
	url string
	o   FetchOptions

	mu      sync.Mutex
	keys    *Keys         // guarded by mu
	fetched time.Time     // when keys were; guarded by mu
	tried   time.Time     // when the last request began; guarded by mu
	request chan struct{} // closed when the request under way has ended; nil: there is none; guarded by mu
}

// FetchKeys fetches a JSON Web Key Set. Keys that are of no use are left out, as by OpenKeys, and
// so are secrets, which do not belong at a URL. Nil options are the zero ones. The URL should be
// one with https: who can forge the answer can forge tokens.
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
	}{{&k.o.Timeout, 5 * time.Second}, {&k.o.Refresh, 15 * time.Minute}, {&k.o.Retry, 30 * time.Second}, {&k.o.MaxAge, 24 * time.Hour}} {
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

// Find returns the keys with the identifier. If there is none that may be used, it blocks until a
// request has ended, or ctx ends; where the last request began less than FetchOptions.Retry ago, it
// makes none.
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

// findLocked returns the keys with the identifier that are there, and an error if they are too old.
func (k *KeyURL) findLocked(id string) ([]Key, error) {
	if age := time.Since(k.fetched); age >= k.o.MaxAge {
		return nil, fmt.Errorf("the keys of %s are %v old", k.url, age.Round(time.Second))
	}
	return k.keys.find(id), nil
}

// beginLocked begins a request, which several may wait for, whichever of them goes away.
func (k *KeyURL) beginLocked() {
	request := make(chan struct{})
	k.request, k.tried = request, time.Now()
	go func() { // ends with the time-out of the request at the latest
		keys, err := k.fetch(context.Background())
		if k.o.Report != nil {
			k.o.Report(err)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if err == nil {
			k.keys, k.fetched = keys, time.Now()
		}
		k.request = nil
		close(request)
	}()
}

func (k *KeyURL) fetch(ctx context.Context) (*Keys, error) {
	ctx, cancel := context.WithTimeout(ctx, k.o.Timeout)
	defer cancel()
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
	keys, err := parseSet(b, false)
	if err != nil {
		return nil, fmt.Errorf("jwt: %s: %w", k.url, err)
	}
	return keys, nil
}
