package webhook

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"
)

// A key identifies a question. It is a MAC, so the cache does not reveal passwords.
type key [sha256.Size]byte

// answerSize is the memory of a cached answer, without its text, in bytes.
const answerSize = 512

// kept is the cache of answers. When it is full, the least recently used answer is removed: of all
// answers, or of the peer of the new answer if this peer has more than an eighth. So one peer does
// not push out the answers of all others.
type kept struct {
	most, mostBytes int // immutable

	mu sync.Mutex
	// Guarded by mu. The last used answer is the first in each list.
	answers map[key]*answer
	used    list.List // of *answer
	size    int       // of all, in bytes
	peers   map[string]*keptOf
}

// keptOf are the cached answers of a peer.
type keptOf struct {
	used list.List // of *answer
	size int
}

func newKept(most, mostBytes int) kept {
	return kept{most: most, mostBytes: mostBytes, answers: map[key]*answer{},
		peers: map[string]*keptOf{}}
}

// find returns the answer to a question, or nil if there is no valid one.
func (k *kept) find(of key, now time.Time) *answer {
	k.mu.Lock()
	defer k.mu.Unlock()
	x := k.answers[of]
	if x == nil {
		return nil
	}
	if !now.Before(x.until) {
		k.removeLocked(x)
		return nil
	}
	k.used.MoveToFront(x.place)
	k.peers[x.peer].used.MoveToFront(x.placeOfPeer)
	return x
}

// add puts x into the cache. Its key, peer, size and until are set.
func (k *kept) add(x *answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.answers[x.key]; old != nil {
		k.removeLocked(old)
	}
	p := k.peers[x.peer]
	if p == nil {
		p = new(keptOf)
		k.peers[x.peer] = p
	}
	k.answers[x.key] = x
	x.place, x.placeOfPeer = k.used.PushFront(x), p.used.PushFront(x)
	k.size += x.size
	p.size += x.size
	for k.used.Len() > k.most || k.size > k.mostBytes {
		last := k.used.Back()
		if p.used.Len() > max(1, k.most/8) || p.size > k.mostBytes/8 {
			last = p.used.Back()
		}
		k.removeLocked(last.Value.(*answer))
	}
}

func (k *kept) removeLocked(x *answer) {
	p := k.peers[x.peer]
	delete(k.answers, x.key)
	k.used.Remove(x.place)
	p.used.Remove(x.placeOfPeer)
	k.size -= x.size
	p.size -= x.size
	if p.used.Len() == 0 {
		delete(k.peers, x.peer)
	}
}
