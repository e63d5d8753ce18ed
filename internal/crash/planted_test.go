package crash

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/dunlin-mqtt/dunlin/store"
	"github.com/dunlin-mqtt/dunlin/store/segment"
)

// faultEnv names a fault of the store in the environment of a test that has to find it.
const faultEnv = "DUNLIN_CRASH_FAULT"

const (
	unwritten  = "unwritten"  // what Commit has returned for is in the memory of the process
	unreleased = "unreleased" // PUBRECs are not recorded
	unrefused  = "unrefused"  // Commit returns nil for a batch that has no room
)

// openStore opens the store of the broker in dir, with the fault that is planted, if one is.
func openStore(dir string, o segment.Options) (store.Store, error) {
	if os.Getenv(faultEnv) == unwritten {
		o.Durability = store.DurabilityNone
	}
	st, err := segment.Open(dir, o)
	switch fault := os.Getenv(faultEnv); {
	case err != nil:
		return nil, err
	case fault == unreleased:
		return forgetful{st}, nil
	case fault == unrefused:
		return &boastful{Store: st}, nil
	}
	return st, nil
}

// A boastful Store says of the first batch with messages that has no room that it is committed. It is
// lost, with all that it would have removed: after more of them the store might stay full.
type boastful struct {
	store.Store
	lied bool
}

func (b *boastful) Commit(ctx context.Context, ops []store.Op) error {
	err := b.Store.Commit(ctx, ops)
	isPublish := func(op store.Op) bool { _, is := op.(*store.Publish); return is }
	if errors.Is(err, store.ErrFull) && !b.lied && slices.ContainsFunc(ops, isPublish) {
		b.lied = true
		return nil
	}
	return err
}

// A forgetful Store forgets PUBRECs.
type forgetful struct{ store.Store }

func (f forgetful) Commit(ctx context.Context, ops []store.Op) error {
	kept := slices.DeleteFunc(slices.Clone(ops), func(op store.Op) bool {
		_, is := op.(*store.Released)
		return is
	})
	return f.Store.Commit(ctx, kept)
}

// A test that cannot fail proves nothing: with each planted fault the tests of crashes have to find
// something. TestTheModelFindsPlantedFaults of the root package is the same in virtual time.
func TestPlantedFaultsAreFound(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it kills two more brokers, until they have lost something")
	}
	for name, fault := range map[string]string{
		"acknowledgements before anything is written": unwritten,
		"PUBRECs that are not recorded":               unreleased,
	} {
		t.Run(name, func(t *testing.T) { findsPlanted(t, fault, "TestKill") })
	}
}

// findsPlanted checks that a test of this package finds the fault.
func findsPlanted(t *testing.T, fault, run string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.count=1", "-test.run=^"+run+"$")
	cmd.Env = append(os.Environ(), "DUNLIN_KILLS=20", faultEnv+"="+fault)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("nothing was found:\n%s", out)
	}
	for _, found := range []string{"never got", " times", "the Session is gone"} {
		if strings.Contains(string(out), found) {
			return
		}
	}
	t.Fatalf("it failed for another reason:\n%s", out)
}
