package clustertest

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/dunlin-mqtt/dunlin/cluster"
)

// settled waits until Get of a node returns what a Put has made of a key.
func (e *env) settled(n *node, p cluster.Put) error {
	var v cluster.Entry
	var err error
	wait := e.until("Get returns the new value of "+p.Key, patience, func() bool {
		v, err = n.Get(e.ctx, p.Key)
		return err != nil || v.Rev == p.New
	})
	if err = errors.Join(err, wait); err != nil {
		return err
	}
	if !bytes.Equal(v.Value, p.Value) {
		return fmt.Errorf("key %q has the value %q at Rev %d, want %q", p.Key, v.Value, v.Rev,
			p.Value)
	}
	return nil
}

func checkRace(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	var rev [2]uint64
	keys := [2]string{"a/one", "b/two"}
	for round := range 40 {
		var won [3][]cluster.Put
		err := e.together(func(i int) error {
			value := fmt.Appendf(nil, "%d of %d", i, round)
			puts := []cluster.Put{{Key: keys[0], Rev: rev[0], Value: value},
				{Key: keys[1], Rev: rev[1], Value: value}}
			if i == 2 && round%2 == 0 {
				puts = puts[1:]
			}
			done, err := e.nodes[i].change(e.ctx, puts...)
			if err == nil {
				won[i] = done
			} else if !errors.Is(err, cluster.ErrConflict) {
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
		winners := 0
		for _, puts := range won {
			if puts == nil {
				continue
			}
			winners++
			for _, p := range puts {
				k := 0
				if p.Key == keys[1] {
					k = 1
				}
				if p.New == rev[k] {
					return fmt.Errorf("a Change of %q leaves Rev %d as it was", p.Key, p.New)
				}
				rev[k] = p.New
				if err := e.settled(e.nodes[round%3], p); err != nil {
					return err
				}
			}
		}
		if winners != 1 {
			return fmt.Errorf("%d of three Changes with the same Rev succeeded, want 1", winners)
		}
	}
	return e.halves(keys, rev)
}

// halves makes Changes of which one half is wrong: the other half must have no effect.
func (e *env) halves(keys [2]string, rev [2]uint64) error {
	for wrong := range 2 {
		expect := rev
		expect[wrong]++
		_, err := e.nodes[0].change(e.ctx,
			cluster.Put{Key: keys[0], Rev: expect[0], Value: []byte("half")},
			cluster.Put{Key: keys[1], Rev: expect[1], Value: []byte("half")})
		if !errors.Is(err, cluster.ErrConflict) {
			return fmt.Errorf("a Change whose Put %d has a wrong Rev has %v, want %v", wrong, err,
				cluster.ErrConflict)
		}
		for k := range 2 {
			p := cluster.Put{Key: keys[k], Rev: rev[k], Value: []byte("whole")}
			next, conflict, err := e.nodes[1].changes(e.ctx, p)
			if err != nil {
				return err
			}
			if conflict {
				return fmt.Errorf("a Change that was refused has changed key %q", keys[k])
			}
			rev[k] = next
		}
	}
	return nil
}

func checkStale(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	a, b := e.nodes[0], e.nodes[1]
	set := func(n *node, rev uint64, value []byte) (uint64, error) {
		next, conflict, err := n.changes(e.ctx, cluster.Put{Key: "k/1", Rev: rev, Value: value})
		if conflict {
			err = fmt.Errorf("a Change with the right Rev %d is refused", rev)
		}
		return next, err
	}
	refused := func(n *node, rev uint64, why string) error {
		for _, value := range [][]byte{[]byte("stale"), nil} {
			_, conflict, err := n.changes(e.ctx, cluster.Put{Key: "k/1", Rev: rev, Value: value})
			if err == nil && !conflict {
				err = fmt.Errorf("a Change with the Rev of %s succeeds", why)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	first, err := set(a, 0, []byte{})
	if err != nil {
		return err
	}
	second, err := set(a, first, []byte("second"))
	err = errors.Join(err, refused(b, first, "an old value"), refused(a, first, "an old value"),
		refused(b, 0, "a free key"), refused(b, second+1, "no value"))
	if err != nil {
		return err
	}
	_, err = set(b, second, nil)
	err = errors.Join(err, refused(a, second, "a value that was freed"))
	if err != nil {
		return err
	}
	third, err := set(a, 0, []byte("third"))
	err = errors.Join(err, refused(b, first, "a value before the key was freed"),
		refused(b, second, "a value before the key was freed"))
	if err == nil && (third == first || third == second) {
		err = fmt.Errorf("the Rev %d comes again", third)
	}
	if err != nil {
		return err
	}
	return e.counts()
}

// counts lets all nodes increment one number, each by what Get says of it.
func (e *env) counts() error {
	const each = 20
	err := e.together(func(i int) error {
		n, began := e.nodes[i], time.Now()
		for done := 0; done < each; {
			v, err := n.Get(e.ctx, "count")
			if err != nil {
				return err
			}
			x, _ := strconv.Atoi(string(v.Value))
			value := strconv.AppendInt(nil, int64(x)+1, 10)
			p := cluster.Put{Key: "count", Rev: v.Rev, Value: value}
			_, conflict, err := n.changes(e.ctx, p)
			if err != nil {
				return err
			}
			if !conflict {
				done++
			}
			if time.Since(began) > patience {
				return fmt.Errorf("node %d has changed a key %d times in %v", i, done, patience)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	highest := 0
	return e.until(fmt.Sprintf("the sum of all increments is %d", 3*each), 10*time.Second,
		func() bool {
			v, err := e.nodes[0].Get(e.ctx, "count")
			highest, _ = strconv.Atoi(string(v.Value))
			return err == nil && highest == 3*each
		})
}

// freed waits until a key can be made anew, and returns when that was.
func (e *env) freed(key string, limit time.Duration) (at time.Time, err error) {
	err = errors.Join(e.until("the key "+key+" is free", limit, func() bool {
		var conflict bool
		_, conflict, err = e.nodes[1].changes(e.ctx, cluster.Put{Key: key, Value: []byte("new")})
		return err != nil || !conflict
	}), err)
	return time.Now(), err
}

func checkTTL(e *env) error {
	if err := e.startAll(); err != nil {
		return err
	}
	ttl := 3 * time.Second
	began := time.Now()
	held := map[string]uint64{}
	for _, key := range []string{"t/plain", "t/longer", "t/kept", "t/gone"} {
		rev, _, err := e.nodes[0].changes(e.ctx, cluster.Put{Key: key, Value: []byte("v"), TTL: ttl})
		if err != nil {
			return err
		}
		held[key] = rev
	}
	for key, p := range map[string]cluster.Put{
		"t/longer": {Value: []byte("v"), TTL: 4 * ttl}, "t/kept": {Value: []byte("v")}, "t/gone": {},
	} {
		p.Key, p.Rev = key, held[key]
		_, conflict, err := e.nodes[1].changes(e.ctx, p)
		if err != nil {
			return err
		}
		if conflict {
			return fmt.Errorf("the value of %q, which has a TTL, cannot be replaced", key)
		}
	}
	if _, err := e.freed("t/gone", time.Second); err != nil {
		return err
	}
	told := time.Now().Add(ttl)
	at, err := e.freed("t/plain", time.Until(told)+cluster.Slack)
	if err != nil {
		return err
	}
	if took := at.Sub(began); took < ttl {
		return fmt.Errorf("a TTL of %v has freed a key after %v", ttl, took)
	}
	e.LoseLeaders()
	limit := time.Until(began.Add(4*ttl)) + cluster.Slack + 2*e.Election + time.Second
	if at, err = e.freed("t/longer", limit); err != nil {
		return err
	}
	if took := at.Sub(began); took < 4*ttl {
		return fmt.Errorf("a TTL that was made longer has freed a key after %v, want %v", took, 4*ttl)
	}
	return e.verifyList(map[string]bool{"t/plain": true, "t/longer": true, "t/kept": true,
		"t/gone": true})
}

// verifyList waits until List on every node has the keys that begin with t/, and no others.
func (e *env) verifyList(want map[string]bool) error {
	for _, n := range e.nodes {
		var failed error
		err := e.until(fmt.Sprintf("List on node %d has %v", n.at, want), patience, func() bool {
			got := map[string]bool{}
			for v, err := range n.List(e.ctx, "t/") {
				if err != nil {
					failed = err
					return true
				}
				if v.Rev == 0 {
					failed = fmt.Errorf("a List has the key %q with Rev 0", v.Key)
				}
				got[v.Key] = true
			}
			return fmt.Sprint(got) == fmt.Sprint(want)
		})
		if err = errors.Join(failed, err); err != nil {
			return err
		}
	}
	return nil
}
