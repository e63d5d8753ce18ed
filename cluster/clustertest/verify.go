package clustertest

import (
	"fmt"
	"strconv"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// verify looks for broken rules when the faults are over.
func (h *history) verify() error {
	if err := h.allLive(); err != nil {
		return err
	}
	for part := range h.nodes[0].limits.Partitions {
		var end *cluster.Record
		for _, n := range h.nodes {
			end = h.record(part, "end")
			if err := n.put(h.ctx, end); err != nil {
				return fmt.Errorf("after all faults are over: %w", err)
			}
		}
		log, err := h.read(h.nodes[0], part, end.Pos)
		if err != nil {
			return err
		}
		for _, verify := range []func(int, []*cluster.Record) error{
			h.verifyEntries, h.verifyOrder, h.verifyOnceKeys, h.verifyFeeds,
		} {
			if err := verify(part, log); err != nil {
				return fmt.Errorf("partition %d: %w", part, err)
			}
		}
		for _, s := range h.shots {
			if s.part == part {
				if err := s.verify(log); err != nil {
					return err
				}
			}
		}
	}
	return h.verifyRegister()
}

// verifyEntries compares the log with what Commit said of each record.
func (h *history) verifyEntries(part int, log []*cluster.Record) error {
	at := map[string]*cluster.Record{}
	for _, r := range log {
		id := r.Message.ContentType()
		if at[id] != nil {
			return fmt.Errorf("a record is there twice, at %d and %d", at[id].Pos, r.Pos)
		}
		at[id] = r
	}
	known := 0
	for _, x := range h.entries {
		if x.r.Part != part {
			continue
		}
		there := at[x.id]
		if there != nil {
			known++
		}
		switch x.became {
		case outcomeAdded:
			if there == nil {
				return fmt.Errorf("a record of node %d was committed at %d, and is not there",
					x.at, x.r.Pos)
			}
			if err := same(there, x.r); err != nil {
				return err
			}
		case outcomeRepeated, outcomeRefused:
			if there != nil {
				return fmt.Errorf("a record of node %d was refused (Repeated %v, Err %v), and is "+
					"there at %d", x.at, x.r.Repeated, x.r.Err, there.Pos)
			}
		}
	}
	if ends := len(h.nodes); known+ends != len(log) {
		return fmt.Errorf("%d records that nobody has committed are there", len(log)-known-ends)
	}
	return nil
}

// verifyOrder looks whether the records of each life of a node are in the order in which they were
// given, without holes, and whether nothing of a life came when the next one had committed.
func (h *history) verifyOrder(part int, log []*cluster.Record) error {
	at := map[string]uint64{}
	for _, r := range log {
		at[r.Message.ContentType()] = r.Pos
	}
	type life struct{ at, life int }
	last, missing := map[life]uint64{}, map[life]bool{}
	firstOf := map[life]uint64{} // of those that were acknowledged
	for _, x := range h.entries {
		if of := (life{x.at, x.life}); x.r.Part == part && x.became == outcomeAdded &&
			firstOf[of] == 0 {
			firstOf[of] = x.r.Pos
		}
	}
	for _, x := range h.entries {
		of := life{x.at, x.life}
		pos := at[x.id]
		switch {
		case x.r.Part != part:
			continue
		case pos == 0:
			if x.became == outcomeUnknown && x.once.Name == "" {
				missing[of] = true
			}
			continue
		case missing[of]:
			return fmt.Errorf("the record at %d of node %d is there, one before it is not", pos,
				x.at)
		case pos <= last[of]:
			return fmt.Errorf("node %d gave the record at %d before that at %d", x.at, last[of],
				pos)
		}
		last[of] = pos
		if next := firstOf[life{x.at, x.life + 1}]; next != 0 && pos > next {
			return fmt.Errorf("the record at %d is of node %d before it was killed, and comes "+
				"after that at %d, which is of its next life", pos, x.at, next)
		}
	}
	return nil
}

// verifyOnceKeys counts the records of each Key.
func (h *history) verifyOnceKeys(part int, log []*cluster.Record) error {
	at := map[string]uint64{}
	for _, r := range log {
		at[r.Message.ContentType()] = r.Pos
	}
	added, wanted := map[string]int{}, map[string]bool{}
	for _, x := range h.entries {
		if x.r.Part != part || x.once.Name == "" {
			continue
		}
		key := fmt.Sprint(x.once)
		if at[x.id] != 0 {
			added[key]++
		}
		if x.became == outcomeRepeated {
			wanted[key] = true
		}
	}
	for key, n := range added {
		if n > 1+h.forgot[key] {
			return fmt.Errorf("%d records with Once %s are there, and it was forgotten %d times",
				n, key, h.forgot[key])
		}
	}
	for key := range wanted {
		if added[key] == 0 {
			return fmt.Errorf("a record with Once %s is Repeated, and none is there", key)
		}
	}
	return nil
}

// verifyFeeds compares what each life of each node got with the log.
func (h *history) verifyFeeds(part int, log []*cluster.Record) error {
	for _, n := range h.all {
		var dead bool
		n.locked(func() { dead = n.dead })
		if !dead {
			if err := h.verifyFeed(n, part, log, log[len(log)-1].Pos-1); err != nil {
				return err
			}
			continue
		}
		got, _ := n.fed(part)
		if len(got) == 0 {
			continue
		}
		first := 0
		for first < len(log) && log[first].Pos < got[0].Pos {
			first++
		}
		if err := equal(got, log[first:min(first+len(got), len(log))]); err != nil {
			return fmt.Errorf("Handler.Records of node %d, which was killed: %w", n.at, err)
		}
	}
	return nil
}

// verifyRegister compares the register with the Changes that succeeded.
func (h *history) verifyRegister() error {
	for i := range sessions {
		keys := []string{fmt.Sprint("s/", i), fmt.Sprint("p/", i)}
		var values [2]string
		if err := h.until(fmt.Sprintf("the keys %q have the same value", keys), patience, func() bool {
			for k, key := range keys {
				v, err := h.nodes[1].Get(h.ctx, key)
				if err != nil {
					return false
				}
				values[k] = string(v.Value)
			}
			return values[0] == values[1]
		}); err != nil {
			return fmt.Errorf("%w, but %q", err, values)
		}
	}
	// a last increment shows what the others came to
	for {
		v, err := h.nodes[1].Get(h.ctx, counter)
		if err != nil {
			return err
		}
		n, _ := strconv.Atoi(string(v.Value))
		p := cluster.Put{Key: counter, Rev: v.Rev, Value: []byte("end")}
		_, conflict, err := h.nodes[1].changes(h.ctx, p)
		if err != nil {
			return err
		}
		if conflict {
			continue
		}
		if n < h.counted || n > h.counted+h.perhaps {
			return fmt.Errorf("%d increments succeeded, and %d have an unknown outcome, but the "+
				"number is %d", h.counted, h.perhaps, n)
		}
		return nil
	}
}
