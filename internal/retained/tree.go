package retained

import (
	"slices"
	"sort"
)

// fanout is how many items a leaf, or children another node, can have.
const fanout = 64

// A tree keeps messages in the order of their topics' bytes. It is a B+tree: the messages are in
// the leaves, which all have the same depth. Each node has a summary of the topics below it, so
// that a scan passes over whole parts of the tree.
type tree struct {
	root  *node
	count int
}

// A node has items if it is a leaf, and kids otherwise.
type node struct {
	topics summary
	items  []item
	kids   []kid
	lost   int // kids that have lost something since topics was made
}

type item struct {
	topic string // of msg, so that a search does not read msg
	msg   *Message
	at    uint32 // when it was set
}

type kid struct {
	first string // the first topic below n
	n     *node
}

// stale is how many kids may have lost something before the summary of their parent is made anew.
const stale = 8

func newTree() *tree { return &tree{root: new(node)} }

func (n *node) leaf() bool { return n.kids == nil }

// size is how many items or kids n has.
func (n *node) size() int { return len(n.items) + len(n.kids) }

// first returns the first topic below n, which is not empty.
func (n *node) first() string {
	if n.leaf() {
		return n.items[0].topic
	}
	return n.kids[0].first
}

// item returns the index of topic in a leaf, or where it belongs.
func (n *node) item(topic string) (i int, found bool) {
	i = sort.Search(len(n.items), func(i int) bool { return n.items[i].topic >= topic })
	return i, i < len(n.items) && n.items[i].topic == topic
}

// kid returns the index of the only child that may have topic.
func (n *node) kid(topic string) int {
	i := sort.Search(len(n.kids), func(i int) bool { return n.kids[i].first > topic })
	return max(i-1, 0)
}

// get returns the item of topic, nil if there is none.
func (t *tree) get(topic string) *item {
	n := t.root
	for !n.leaf() {
		n = n.kids[n.kid(topic)].n
	}
	if i, found := n.item(topic); found {
		return &n.items[i]
	}
	return nil
}

// insert adds m, whose topic has no item yet.
func (t *tree) insert(m *Message, at uint32) {
	add := summarize(m.Topic)
	right := t.root.insert(item{m.Topic, m, at}, &add)
	if right != nil {
		left := t.root
		t.root = &node{kids: []kid{{left.first(), left}, {right.first(), right}}}
		t.root.summarize()
	}
	t.count++
}

// insert adds it, whose summary is add, below n. It returns the node that n had to be split into.
func (n *node) insert(it item, add *summary) (right *node) {
	if n.leaf() {
		i, _ := n.item(it.topic)
		n, i, right = n.makeRoom(i)
		n.items = slices.Insert(n.items, i, it)
		n.topics.merge(add)
		return right
	}
	i := n.kid(it.topic)
	child := n.kids[i].n
	split := child.insert(it, add)
	n.kids[i].first = child.first()
	if split != nil {
		n, i, right = n.makeRoom(i + 1)
		n.kids = slices.Insert(n.kids, i, kid{split.first(), split})
		n.topics.merge(&split.topics)
	}
	n.topics.merge(add)
	return right
}

// makeRoom splits n if it is full. It returns the half, and the index in it, at which something
// goes that would have gone to index i of n.
func (n *node) makeRoom(i int) (half *node, at int, right *node) {
	if n.size() < fanout {
		return n, i, nil
	}
	middle := fanout / 2
	if i == fanout { // topics that come in their order leave full nodes behind
		middle = fanout
	}
	right = new(node)
	if n.leaf() {
		right.items = append(right.items, n.items[middle:]...)
		clear(n.items[middle:])
		n.items = n.items[:middle]
	} else {
		right.kids = append(make([]kid, 0, fanout-middle+1), n.kids[middle:]...)
		clear(n.kids[middle:])
		n.kids = n.kids[:middle]
	}
	if middle < fanout {
		n.summarize()
		right.summarize()
	}
	if i < middle {
		return n, i, right
	}
	return right, i - middle, right
}

// remove removes topic and returns its message, nil if there is none.
func (t *tree) remove(topic string) *Message {
	old, _ := t.root.remove(topic)
	if old == nil {
		return nil
	}
	t.count--
	for len(t.root.kids) == 1 {
		t.root = t.root.kids[0].n
	}
	if t.count == 0 {
		t.root = new(node)
	}
	return old
}

// remove removes topic from below n. lost says that the summary of n has become smaller.
func (n *node) remove(topic string) (old *Message, lost bool) {
	if n.leaf() {
		i, found := n.item(topic)
		if !found {
			return nil, false
		}
		old = n.items[i].msg
		n.items = slices.Delete(n.items, i, i+1)
		return old, n.summarize()
	}
	i := n.kid(topic)
	child := n.kids[i].n
	old, lost = child.remove(topic)
	if old == nil {
		return nil, false
	}
	if child.size() == 0 {
		n.kids = slices.Delete(n.kids, i, i+1)
	} else {
		n.kids[i].first = child.first()
		n.unite(i)
	}
	if lost {
		n.lost++
	}
	return old, n.lost >= stale && n.summarize()
}

// unite merges the child i with a neighbour if it is small and both fit into three quarters of a
// node.
func (n *node) unite(i int) {
	if n.kids[i].n.size() >= fanout/4 {
		return
	}
	fits := func(i int) bool {
		return i >= 0 && i+1 < len(n.kids) &&
			n.kids[i].n.size()+n.kids[i+1].n.size() <= fanout*3/4
	}
	if !fits(i) {
		i--
	}
	if !fits(i) {
		return
	}
	left, right := n.kids[i].n, n.kids[i+1].n
	left.items = append(left.items, right.items...)
	left.kids = append(left.kids, right.kids...)
	left.topics.merge(&right.topics)
	left.lost += right.lost
	n.kids = slices.Delete(n.kids, i+1, i+2)
}

// summarize makes the summary of n anew, and says whether it has changed.
func (n *node) summarize() bool {
	old := n.topics
	n.topics, n.lost = summary{}, 0
	for i := range n.items {
		s := summarize(n.items[i].topic)
		n.topics.merge(&s)
	}
	for i := range n.kids {
		n.topics.merge(&n.kids[i].n.topics)
	}
	return n.topics != old
}
