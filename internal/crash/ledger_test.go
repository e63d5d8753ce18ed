package crash

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
)

// A ledger is what one subscriber received. It keeps a byte for each message, so that a long run
// fits into memory.
type ledger struct {
	mu       sync.Mutex
	times    map[string][]uint8 // how often, by publisher and number
	last     map[string]int     // the number of what came last, by topic, without repetitions
	distinct int
	disorder int // messages that came after a later one of the same topic
	repeated int // QoS 1 again, which is allowed
}

// record notes a message, and returns what is wrong with it, if anything.
func (l *ledger) record(topic, payload string) error {
	m, _, _ := strings.Cut(payload, "|")
	inside, number, _ := strings.Cut(m, " ")
	n, err := strconv.Atoi(number)
	if err != nil || inside != topic {
		return fmt.Errorf("%q came on %s", m, topic)
	}
	publisher := topic[:strings.LastIndexByte(topic, '/')]
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.times == nil {
		l.times, l.last = make(map[string][]uint8), make(map[string]int)
	}
	times := l.times[publisher]
	for len(times) <= n {
		times = append(times, 0)
	}
	l.times[publisher] = times
	if times[n] > 0 {
		if times[n] < math.MaxUint8 {
			times[n]++
		}
		l.repeated++
		return nil
	}
	times[n]++
	l.distinct++
	if n < l.last[topic] {
		l.disorder++
		err = fmt.Errorf("%q came after number %d", m, l.last[topic])
	}
	l.last[topic] = n
	return err
}

// count is how many messages came, without repetitions.
func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.distinct
}

// topics is on how many topics something came.
func (l *ledger) topics() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.last)
}

// newest is the number of the message that came last on the topic.
func (l *ledger) newest(topic string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[topic]
}

// Figures are what a run is judged by.
type figures struct {
	lost, twice, disorder, repeated int
	anyway                          int // QoS 1, refused and delivered
}

// check compares what s received with what was published, now that nothing more comes.
func (f *figures) check(errs *problems, s *client, publishers []*client) {
	for _, p := range publishers {
		times := s.ledger.times["t/"+p.id]
		for n, kind := range p.log {
			refused := kind&refusedKind != 0
			kind &^= refusedKind
			switch m := fmt.Sprintf("t/%s/%s %d", p.id, kinds[kind], n+1); {
			case refused && (n+1 >= len(times) || times[n+1] == 0):
			case refused && kinds[kind] == "q1":
				// it may have gone out at once, or have been stored when it was first sent
				f.anyway++
			case refused:
				f.twice++
				errs.add("%s got %q %d times, which was refused", s.id, m, times[n+1])
			case n+1 >= len(times) || times[n+1] == 0:
				f.lost++
				errs.add("%s never got %q", s.id, m)
			case times[n+1] > 1 && kinds[kind] != "q1":
				f.twice++
				errs.add("%s got %q %d times", s.id, m, times[n+1])
			}
		}
	}
	f.disorder += s.ledger.disorder
	f.repeated += s.ledger.repeated
}
