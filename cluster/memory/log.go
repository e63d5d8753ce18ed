package memory

import (
	"cmp"
	"slices"
	"sort"

	"github.com/dunlin-mqtt/dunlin/cluster"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A partition is the truth of a part of the log. Records are immutable. Engine.mu is held in this
// whole file, except in the functions of a Backend.
type partition struct {
	records  []*cluster.Record
	lost     uint64                       // the position of the last record that is not kept
	retained map[string][]*cluster.Record // the last ones of a topic; older ones for old replicas
	once     map[string]struct{}
	bytes    int
	// sinceSweep counts groups since retained messages were swept.
	sinceSweep int
}

func newPartition() *partition {
	return &partition{retained: map[string][]*cluster.Record{}, once: map[string]struct{}{}}
}

// What a record, and a Key of Once, take in memory beside their bytes. Rough.
const overhead = 200

func weight(r *cluster.Record) int { return r.Size() + overhead }

// A group is the part of a Batch that one unit decides.
type group struct {
	incarnation uint64
	forget      []cluster.Key
	records     []*cluster.Record // of the caller
	copies      []*cluster.Record // of the engine, with what has been decided
	changes     []*cluster.Change // of the caller
	outcomes    []cluster.Change  // with what has been decided
}

// copyMessage returns a message with memory of its own.
func copyMessage(m *store.Message) *store.Message {
	return &store.Message{Message: *m.Message.Clone(), Expires: m.Expires, From: m.From}
}

// copyRecord returns what a Handler may keep: the message of one node is not that of another.
func copyRecord(r *cluster.Record) *cluster.Record {
	c := *r
	c.Message = &store.Message{
		Message: r.Message.Message, Expires: r.Message.Expires, From: r.Message.From,
	}
	return &c
}

// bytes returns what the log takes.
func (e *Engine) bytes() (n int) {
	for _, p := range e.parts {
		n += p.bytes
	}
	return n
}

// decideRecords is the moment at which the records of a group are there, or are not.
func (e *Engine) decideRecords(u int, b *Backend, g *group) {
	p, x := e.parts[u], e.units[u]
	refuse := func(err error) {
		for _, r := range g.copies {
			r.Err = cmp.Or(r.Err, err)
		}
	}
	if !e.member(b, g.incarnation) {
		refuse(cluster.ErrFenced)
		return
	}
	for _, k := range g.forget {
		if _, ok := p.once[k.Name]; ok {
			delete(p.once, k.Name)
			p.bytes -= len(k.Name) + overhead
		}
	}
	if len(g.copies) == 0 {
		return
	}
	sum := 0
	for _, r := range g.copies {
		if r.Err == nil {
			sum += weight(r)
		}
	}
	if e.bytes()+sum > e.o.MaxBytes {
		e.trim(u)
	}
	if e.full || e.bytes()+sum > e.o.MaxBytes {
		refuse(cluster.ErrFull)
		return
	}
	x.pos++ // for the group itself, so that nobody relies on positions without holes
	for _, r := range g.copies {
		if r.Err == nil {
			p.add(x, r)
		}
	}
	e.trim(u)
	e.spread(u)
}

// add adds a record, unless its Once is known.
func (p *partition) add(x *unit, r *cluster.Record) {
	if r.Once.Name != "" {
		if _, r.Repeated = p.once[r.Once.Name]; r.Repeated {
			return
		}
		p.once[r.Once.Name] = struct{}{}
		p.bytes += len(r.Once.Name) + overhead
	}
	x.pos++
	r.Pos = x.pos
	p.records = append(p.records, r)
	p.bytes += weight(r)
	if r.Retain {
		p.retained[r.Message.Topic] = append(p.retained[r.Message.Topic], r)
		p.bytes += weight(r)
	}
}

// trim lets go of what Options.Keep does not cover and all Handlers have got, and, now and then, of
// retained messages that no replica shows any more.
func (e *Engine) trim(u int) {
	p, low := e.parts[u], e.lowest(u)
	for len(p.records) > e.o.Keep && p.records[0].Pos <= low {
		p.lost = p.records[0].Pos
		p.bytes -= weight(p.records[0])
		p.records[0] = nil
		p.records = p.records[1:]
	}
	if p.sinceSweep++; p.sinceSweep < len(p.retained) {
		return // so that sweeping costs no more than adding
	}
	p.sinceSweep = 0
	for topic, all := range p.retained {
		n := 0 // how many a later one hides from everybody
		for n+1 < len(all) && all[n+1].Pos <= low {
			n++
		}
		if n+1 == len(all) && all[n].Pos <= low && len(all[n].Message.Payload) == 0 {
			n++
		}
		for _, r := range all[:n] {
			p.bytes -= weight(r)
		}
		if p.retained[topic] = all[n:]; n == len(all) {
			delete(p.retained, topic)
		}
	}
}

// from returns the first record behind a position.
func (p *partition) from(after uint64) int {
	return sort.Search(len(p.records), func(i int) bool { return p.records[i].Pos > after })
}

// page returns records up to a position that somebody asked for.
func (p *partition) page(after, upTo uint64, filters []string, limit int) cluster.Page {
	page := cluster.Page{UpTo: max(after, upTo), Lost: p.lost}
	for i := p.from(after); i < len(p.records) && p.records[i].Pos <= upTo; i++ {
		r := p.records[i]
		matches := func(f string) bool { return packets.MatchTopic(f, r.Message.Topic) }
		if !slices.ContainsFunc(filters, matches) {
			continue
		}
		if len(page.Records) == limit {
			page.UpTo, page.More = page.Records[limit-1].Pos, true
			break
		}
		page.Records = append(page.Records, copyRecord(r))
	}
	return page
}

// retainedAt returns the retained messages as of a position, in the order of their topics, so that
// two runs with one seed do the same.
func (p *partition) retainedAt(pos uint64) (all []*cluster.Record) {
	for _, versions := range p.retained {
		for _, r := range slices.Backward(versions) {
			if r.Pos <= pos {
				if len(r.Message.Payload) > 0 {
					all = append(all, copyRecord(r))
				}
				break
			}
		}
	}
	slices.SortFunc(all, func(a, b *cluster.Record) int {
		return cmp.Compare(a.Message.Topic, b.Message.Topic)
	})
	return all
}

// unseen returns some records that a Handler has not got yet, of those that the replica of its node
// has, and up to where they reach.
func (p *partition) unseen(after, seen uint64, limit int) (some []*cluster.Record, upTo uint64) {
	for i := p.from(after); i < len(p.records) && p.records[i].Pos <= seen; i++ {
		if len(some) == limit {
			return some, some[limit-1].Pos
		}
		some = append(some, copyRecord(p.records[i]))
	}
	return some, seen
}
