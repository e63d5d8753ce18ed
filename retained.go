package dunlin

import (
	"strings"
	"sync"

	"github.com/google/btree"

	"github.com/dunlin-mqtt/dunlin/internal/budget"
)

// A retainedStore keeps the retained message of each topic (3.3.1.3), in the order of the topics' bytes. All methods may be
// called from any goroutine; its lock is a leaf.
type retainedStore struct {
	mu    sync.RWMutex
	items *btree.BTreeG[retainedItem] // guarded by mu
	size  int64                       // guarded by mu
	mem   *budget.Budget              // counts what is held; nil: nobody does
}

// exchange counts that m is held, and old no longer. Both may be nil.
func (r *retainedStore) exchange(old, m *message) {
	if m != nil {
		r.mem.Hold(&m.Holders, budget.Retained, heldSize(m), retainedCost)
	}
	if old != nil {
		r.mem.Release(&old.Holders, budget.Retained, heldSize(old), retainedCost)
	}
}

type retainedItem struct {
	topic string
	msg   *message
}

// newRetainedStore returns an empty store.
func newRetainedStore() *retainedStore {
	return &retainedStore{items: btree.NewG(32, func(a, b retainedItem) bool { return a.topic < b.topic })}
}

// retainedSize is what m counts in bytes.
func retainedSize(m *message) int64 {
	return int64(len(m.Topic) + len(m.Payload) + len(m.Properties))
}

// setWithin is set, unless there would be more than most messages or mostBytes bytes then.
func (r *retainedStore) setWithin(m *message, most int, mostBytes int64) (old *message, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	it, has := r.items.Get(retainedItem{topic: m.Topic})
	n, size := r.items.Len()+1, r.size+retainedSize(m)
	if has {
		n, size = n-1, size-retainedSize(it.msg)
	}
	if n > most || size > mostBytes && size > r.size { // what makes it smaller is always possible
		return nil, false
	}
	r.items.ReplaceOrInsert(retainedItem{m.Topic, m})
	r.size = size
	r.exchange(it.msg, m)
	return it.msg, true
}

// set makes m the retained message of its topic and returns the one it replaces, if any.
func (r *retainedStore) set(m *message) (old *message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.size += retainedSize(m)
	if it, ok := r.items.ReplaceOrInsert(retainedItem{m.Topic, m}); ok {
		r.size -= retainedSize(it.msg)
		old = it.msg
	}
	r.exchange(old, m)
	return old
}

// remove forgets the retained message of topic and returns it, nil if there is none.
func (r *retainedStore) remove(topic string) (old *message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if it, ok := r.items.Delete(retainedItem{topic: topic}); ok {
		r.size -= retainedSize(it.msg)
		old = it.msg
	}
	r.exchange(old, nil)
	return old
}

// removeExactly forgets m if it still is the retained message of its topic, and says whether it was.
func (r *retainedStore) removeExactly(m *message) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if it, _ := r.items.Get(retainedItem{topic: m.Topic}); it.msg != m {
		return false
	}
	r.items.Delete(retainedItem{topic: m.Topic})
	r.size -= retainedSize(m)
	r.exchange(m, nil)
	return true
}

// get returns the retained message of topic, nil if there is none.
func (r *retainedStore) get(topic string) *message {
	r.mu.RLock()
	defer r.mu.RUnlock()
	it, _ := r.items.Get(retainedItem{topic: topic})
	return it.msg
}

// mortal returns those that expire.
func (r *retainedStore) mortal() (all []*message) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.items.Ascend(func(it retainedItem) bool {
		if it.msg.Expires != 0 {
			all = append(all, it.msg)
		}
		return true
	})
	return all
}

// len returns how many messages there are.
func (r *retainedStore) len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.items.Len()
}

// bytes returns how many bytes of topics, payloads and properties are held.
func (r *retainedStore) bytes() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.size
}

// scan appends to dst up to limit messages whose topics match filter and come after the topic after (empty: from the
// beginning), in the order of topics. It looks at no more than a few times as many topics, so that the lock is held
// briefly, and may find nothing although there is more to come. While done is false, call it again with next as after.
func (r *retainedStore) scan(filter, after string, limit int, dst []*message) (out []*message, next string, done bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	first := strings.IndexAny(filter, "+#")
	if first < 0 {
		if it, ok := r.items.Get(retainedItem{topic: filter}); ok && filter > after {
			dst = append(dst, it.msg)
		}
		return dst, filter, true
	}
	s := retainedScan{filter: filter, next: after, limit: limit, left: 4*limit + 64, out: dst}
	// What comes before the first wildcard bounds the walk; a/# begins at a.
	at := strings.TrimSuffix(filter[:first], "/")
	if filter[first] == '+' {
		at = filter[:first]
	}
	for at = max(at, after); !s.done && s.limit > 0 && s.left > 0; at = s.seek {
		s.seek, s.done = "", true // unless the walk is left early
		r.items.AscendGreaterOrEqual(retainedItem{topic: at}, s.visit)
	}
	return s.out, s.next, s.done
}

// A retainedScan is one walk.
type retainedScan struct {
	filter      string
	next        string // the last topic that was seen
	limit, left int    // messages to find and topics to look at
	out         []*message
	seek        string // where to go on
	done        bool   // there is nothing more
}

// visit looks at one topic and says whether to go on with the next one.
func (s *retainedScan) visit(it retainedItem) bool {
	if it.topic <= s.next {
		return true
	}
	if s.limit <= 0 || s.left <= 0 {
		s.done = false
		return false
	}
	s.left--
	s.next = it.topic
	match, seek := s.compare(it.topic)
	if match {
		s.limit--
		s.out = append(s.out, it.msg)
	}
	if seek == "" {
		return true
	}
	s.seek, s.done = seek, seek == noMore
	return false
}

// noMore comes after all topics: it is not UTF-8.
const noMore = "\xff"

// compare says whether topic matches the filter. If topics that come next cannot match, seek is the first that can, or noMore.
func (s *retainedScan) compare(topic string) (match bool, seek string) {
	if topic[0] == '$' && (s.filter[0] == '+' || s.filter[0] == '#') {
		return false, "%" // the byte after '$' [MQTT-4.7.2-1]
	}
	begin, plus := 0, false // of the level of topic; whether a + came before
	for filter := s.filter; ; {
		want, filterRest, filterMore := strings.Cut(filter, "/")
		if want == "#" {
			return true, ""
		}
		level, _, more := strings.Cut(topic[begin:], "/")
		end := begin + len(level)
		if want == "+" {
			plus = true
		} else if want != level {
			return false, s.mismatch(topic[:begin], topic, want, filterMore, plus)
		}
		switch {
		case more && filterMore:
			begin, filter = end+1, filterRest
		case more: // the topic is longer, as all below it
			return false, pastSubtree(topic[:end+1])
		default: // the topic ends here; a/# matches a as well (4.7.1.2)
			return !filterMore || filterRest == "#", ""
		}
	}
}

// mismatch returns where to go on after topic, which has prefix and then not the level want.
func (s *retainedScan) mismatch(prefix, topic, want string, filterMore, plus bool) string {
	// There may be a topic with that level further on: it ends there or goes on with a slash.
	have := topic[len(prefix):]
	if want > have {
		return prefix + want
	}
	if filterMore && strings.HasPrefix(have, want) && have[len(want)] < '/' {
		return prefix + want + "/"
	}
	if !plus {
		return noMore
	}
	return pastSubtree(prefix)
}

// pastSubtree returns what comes after all topics with prefix, which ends in a slash.
func pastSubtree(prefix string) string {
	return prefix[:len(prefix)-1] + string(rune('/'+1))
}
