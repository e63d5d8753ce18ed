package given

import (
	"strings"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/store"
)

// A loading is a record while its operations come. It may have no subscriptions yet.
type loading struct {
	record
	Key
}

// Load takes op, if it is about a record, and says whether it is.
func (t *Table[M, B]) Load(op store.Op) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch op := op.(type) {
	case *store.PutSession:
		scope, ok := strings.CutPrefix(op.ClientID, Prefix)
		if !ok || len(scope) != 1 || op.Will != nil {
			return false
		}
		if t.loading == nil {
			t.loading = make(map[uint64]*loading)
		}
		if t.loading[op.Session] == nil {
			k := Key{Scope(scope[0]), op.Principal}
			t.loading[op.Session] = &loading{record{number: op.Session}, k}
		}
		return true
	case *store.PutSubscription:
		x := t.loading[op.Session]
		if x == nil {
			return false
		}
		s := hooks.Subscription{Subscription: op.Subscription}
		s.ClientMayRemove = op.ID&removable != 0
		s.Filter = strings.Clone(s.Filter)
		x.set(s)
		return true
	case *store.DeleteSubscription:
		x := t.loading[op.Session]
		if x == nil {
			return false
		}
		x.end(op.Filter)
		return true
	case *store.DeleteSession:
		_, ok := t.loading[op.Session]
		delete(t.loading, op.Session)
		return ok
	}
	return false
}

// Loaded ends the loading: keep says which of the records are still of use; number is that of the
// record. It returns the highest number, whether there is a record of a principal, and the
// operations that end what is of no use. It calls keep with the lock of the Table held.
func (t *Table[M, B]) Loaded(
	keep func(k Key, number uint64) bool,
) (last uint64, principals bool, ops []store.Op) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for number, x := range t.loading {
		last = max(last, number)
		if len(x.subs) == 0 || !keep(x.Key, number) {
			ops = append(ops, &store.DeleteSession{Session: number})
			continue
		}
		t.of[x.Key] = &x.record
		principals = principals || x.Scope == ToPrincipal
	}
	t.loading = nil
	return last, principals, ops
}
