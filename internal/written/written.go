// Package written remembers the Topic Filters of a client that a hook has replaced, and the filters
// that replace them. It is plain data, and knows no Session.
package written

import (
	"iter"
	"maps"
	"strings"
)

// Filters maps each Topic Filter that a client wrote to the one that replaces it. All are in the
// form in which clients write them: with $share, without a mount point. The nil *Filters is empty
// and can only be read. A filter can be mapped to itself: the client wrote it, and also another
// filter that is replaced by it.
type Filters struct {
	by    map[string]string
	of    map[string]map[string]struct{} // the inverse of by
	bytes int
}

// cost is about what an entry takes besides its strings.
const cost = 256

// Len returns how many there are.
func (f *Filters) Len() int {
	if f == nil {
		return 0
	}
	return len(f.by)
}

// Bytes returns about how much memory they take.
func (f *Filters) Bytes() int {
	if f == nil {
		return 0
	}
	return f.bytes
}

// Get returns the filter that replaces wrote.
func (f *Filters) Get(wrote string) (by string, ok bool) {
	if f == nil {
		return "", false
	}
	by, ok = f.by[wrote]
	return by, ok
}

// Put notes that wrote is replaced by another filter, and forgets what it was replaced by before.
func (f *Filters) Put(wrote, by string) {
	f.Remove(wrote)
	if f.by == nil {
		f.by, f.of = make(map[string]string), make(map[string]map[string]struct{})
	}
	if f.of[by] == nil {
		f.of[by] = make(map[string]struct{})
	}
	f.by[wrote], f.of[by][wrote] = by, struct{}{}
	f.bytes += cost + len(wrote) + len(by)
}

// Remove forgets wrote.
func (f *Filters) Remove(wrote string) {
	by, ok := f.Get(wrote)
	if !ok {
		return
	}
	f.bytes -= cost + len(wrote) + len(by)
	delete(f.by, wrote)
	if delete(f.of[by], wrote); len(f.of[by]) == 0 {
		delete(f.of, by)
	}
}

// Any says whether a filter is replaced by this one.
func (f *Filters) Any(by string) bool { return f != nil && len(f.of[by]) > 0 }

// Of yields the filters that are replaced by this one, in no order. They may be removed meanwhile.
func (f *Filters) Of(by string) iter.Seq[string] {
	if f == nil {
		return maps.Keys[map[string]struct{}](nil)
	}
	return maps.Keys(f.of[by])
}

// All returns a copy, nil if there are none. It leaves out filters that are mapped to themselves.
func (f *Filters) All() map[string]string {
	if f.Len() == 0 {
		return nil
	}
	all := maps.Clone(f.by)
	maps.DeleteFunc(all, func(wrote, by string) bool { return wrote == by })
	return all
}

// Join returns the Topic Filter under which the store keeps that wrote is replaced by another
// filter. No client can subscribe to it, because it contains U+0000.
func Join(wrote, by string) string { return wrote + "\x00" + by }

// Split is the inverse of Join. ok is false for any other filter.
func Split(filter string) (wrote, by string, ok bool) { return strings.Cut(filter, "\x00") }

// Seen are the Topic Filters of a SUBSCRIBE that a store may refuse. What may have to be taken back
// of one filter must be decided before the next one changes the same subscription. The nil Seen
// notes nothing: nothing has to be taken back.
type Seen map[string]struct{}

// Again notes the filter that the client wrote and the one that it gets, and says whether one of
// them was noted before.
func (f Seen) Again(wrote, gets string) bool {
	if f == nil {
		return false
	}
	_, again := f[wrote]
	_, other := f[gets]
	f[wrote], f[gets] = struct{}{}, struct{}{}
	return again || other
}
