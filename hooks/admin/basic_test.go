package admin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// askBasic asks authorize with a name and a password, and returns the status.
func askBasic(authorize func(*http.Request) (Identity, error), user, password string) int {
	r := httptest.NewRequest("GET", "/", nil)
	r.SetBasicAuth(user, password)
	if _, err := authorize(r); err != nil {
		return asProblem(err).status
	}
	return 200
}

func TestANameDoesNotContinueInThePassword(t *testing.T) {
	authorize := Basic(func(_ context.Context, user, password string) (Role, error) {
		if user == "a" && password == "b\x00c" {
			return RoleAct, nil
		}
		return RoleNone, nil
	})
	require.Equal(t, 200, askBasic(authorize, "a", "b\x00c"))
	require.Equal(t, 401, askBasic(authorize, "a\x00b", "c"), "it is not what was right for a")
	require.Equal(t, 401, askBasic(authorize, "ab", "\x00c"))
}

// All of these have come before the first of them has failed.
func TestManyGuessesAtOnceAreNotMoreThanOneAfterAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authorize := Basic(func(context.Context, string, string) (Role, error) {
			time.Sleep(100 * time.Millisecond)
			return RoleNone, nil
		})
		var mu sync.Mutex
		answers := map[int]int{}
		var over sync.WaitGroup
		for range 5 * basicFailures {
			over.Go(func() {
				status := askBasic(authorize, "ann", "guess")
				mu.Lock()
				defer mu.Unlock()
				answers[status]++
			})
		}
		over.Wait()
		require.LessOrEqual(t, answers[401], basicFailures+basicChecks)
		require.Equal(t, 5*basicFailures, answers[401]+answers[429])
	})
}

func TestAPasswordIsCheckedOnceForAllThatCameWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var checks atomic.Int32
		authorize := Basic(func(context.Context, string, string) (Role, error) {
			checks.Add(1)
			time.Sleep(100 * time.Millisecond)
			return RoleRead, nil
		})
		askBasic(authorize, "ann", "secret")
		time.Sleep(basicKept)
		var over sync.WaitGroup
		for range 3 * basicFailures {
			over.Go(func() { require.Equal(t, 200, askBasic(authorize, "ann", "secret")) })
		}
		over.Wait()
		require.LessOrEqual(t, int(checks.Load()), 1+basicChecks)
	})
}

// Nobody keeps the checks busy by requests that he gives up.
func TestAGuessThatIsGivenUpHasFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checks := 0
		authorize := Basic(func(context.Context, string, string) (Role, error) {
			checks++
			time.Sleep(100 * time.Millisecond)
			return RoleNone, nil
		})
		for range 2 * basicFailures {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
			r.SetBasicAuth("ann", "guess")
			_, err := authorize(r)
			require.Error(t, err)
			cancel()
		}
		require.Equal(t, basicFailures, checks)
	})
}

// Behind a proxy, the guesses of others come from the same address.
func TestGuessesKeepNobodyOutWhoWasThereBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		password := "secret"
		authorize := Basic(func(_ context.Context, _, p string) (Role, error) {
			if p == password {
				return RoleRead, nil
			}
			return RoleNone, nil
		})
		require.Equal(t, 200, askBasic(authorize, "ann", "secret"))
		time.Sleep(basicKept)
		for range basicFailures + 1 {
			askBasic(authorize, "ann", "guess")
		}
		require.Equal(t, 429, askBasic(authorize, "ann", "guess"))
		require.Equal(t, 200, askBasic(authorize, "ann", "secret"))
		password = "changed"
		time.Sleep(basicKept)
		for range basicFailures {
			askBasic(authorize, "ann", "guess")
		}
		require.Equal(t, 401, askBasic(authorize, "ann", "secret"), "it is no longer right")
		require.Equal(t, 429, askBasic(authorize, "ann", "secret"), "and as any other guess")
	})
}
