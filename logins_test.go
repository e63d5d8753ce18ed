package dunlin

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/auth"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// slowPasswords are users u0 to u9, whose passwords are right when they are "right". All checks
// together do ten a second, as one processor does with 210,000 iterations.
func slowPasswords(t *testing.T) *auth.Passwords {
	atATime := max(1, runtime.GOMAXPROCS(0)/2) // as the documentation of Passwords says
	scheme := func(string) (auth.Verifier, error) {
		return func(password []byte) bool {
			time.Sleep(time.Duration(atATime) * 100 * time.Millisecond)
			return string(password) == "right"
		}, nil
	}
	var users []auth.User
	for i := range 10 {
		users = append(users, auth.User{Name: fmt.Sprint("u", i), Hash: "x"})
	}
	us, err := auth.NewUsers(users, scheme)
	require.NoError(t, err)
	return auth.NewPasswords(us)
}

func login(user, password string) *packets.Connect {
	p := as("id of "+user, user)
	p.HasPassword, p.Password = true, []byte(password)
	return p
}

// floods tries wrong passwords, 90 in a second, until the returned function is called. It does not
// wait for answers.
func (r *guardRig) floods(addr, user func(i int) string) (stop func()) {
	done := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-time.After(time.Second / 90):
			}
			nc, _ := r.dialFrom(addr(i))
			p := login(user(i), "wrong")
			p.ClientID = fmt.Sprint("attacker", i)
			wire, err := p.Append(nil, p.Version)
			require.NoError(r.t, err)
			all.Go(func() {
				defer nc.Close()
				if _, err := nc.Write(wire); err == nil {
					io.Copy(io.Discard, nc)
				}
			})
		}
	})
	return func() {
		close(done)
		all.Wait()
	}
}

// logsIn connects with the right password, and wants that to take no longer than three checks.
func (r *guardRig) logsIn(addr, user, why string) {
	r.t.Helper()
	began := time.Now()
	c, code := r.connectFrom(addr, login(user, "right"))
	require.Zero(r.t, code, why)
	check := time.Duration(max(1, runtime.GOMAXPROCS(0)/2)) * 100 * time.Millisecond
	require.LessOrEqual(r.t, time.Since(began), 3*check, why)
	c.close()
}

func TestOneAddressDoesNotKeepPasswordLoginFromOthers(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Config)
		user func(i int) string
	}{
		{"the defaults, one name", nil, func(int) string { return "u0" }},
		{"the defaults, many names", nil, func(i int) string { return fmt.Sprint("nobody", i) }},
		{"no limit of failures, one name", func(c *Config) { c.MaxAuthFailures = -1 },
			func(int) string { return "u0" }},
		{"no limit of failures, many names", func(c *Config) { c.MaxAuthFailures = -1 },
			func(i int) string { return fmt.Sprint("nobody", i) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withRules(t, everything, func(c *Config) {
				c.Authenticator = slowPasswords(t)
				if tt.edit != nil {
					tt.edit(c)
				}
			}, func(r *guardRig) {
				const attacked = "203.0.113.1"
				r.logsIn(attacked, "u1", "nothing is wrong yet")
				defer r.floods(func(int) string { return attacked }, tt.user)()
				for i := range 20 {
					time.Sleep(time.Second)
					r.logsIn("192.0.2.1", "u2", "somebody from elsewhere")
					r.logsIn(fmt.Sprint("198.51.100.", i), "u3",
						"somebody from where nobody was before")
					r.logsIn(attacked, "u1", "somebody who was there before, from the same address")
				}
			})
		})
	}
}

func TestManyAddressesDoNotKeepPasswordLoginFromKnownNames(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.Authenticator = slowPasswords(t) },
		func(r *guardRig) {
			r.logsIn("192.0.2.1", "u1", "nothing is wrong yet")
			defer r.floods(func(i int) string { return fmt.Sprint("203.0.113.", i%250) },
				func(int) string { return "u1" })()
			for range 20 {
				time.Sleep(time.Second)
				r.logsIn("192.0.2.1", "u1", "a name that came from this address before")
			}
		})
}

// A failure behind one NAT is held against its name, and only many of them against the address.
func TestFailuresOfOneNameDoNotLockOthersOut(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxAuthFailures, c.MaxAuthFailuresPerIP = 3, 8 },
		func(r *guardRig) {
			r.grant = func(q *hooks.ConnectRequest) error {
				if string(q.Connect.Password) == "right" {
					return nil
				}
				return packets.Errorf(packets.BadUserNameOrPassword, "wrong")
			}
			try := func(user, password string, want packets.ReasonCode) {
				t.Helper()
				c, code := r.connectFrom("192.0.2.1", login(user, password))
				require.Equal(t, want, packets.ReasonCode(code))
				c.close()
			}
			try("old", "right", packets.Success)
			for range 3 {
				try("bad", "wrong", packets.BadUserNameOrPassword)
			}
			for range 20 {
				try("bad", "wrong", packets.ConnectionRateExceeded)
			}
			try("bad", "right", packets.ConnectionRateExceeded)
			try("new", "right", packets.Success)
			try("old", "right", packets.Success)
			for i := range 5 {
				try(fmt.Sprint("guess", i), "wrong", packets.BadUserNameOrPassword)
			}
			try("guess", "right", packets.ConnectionRateExceeded)
			for range 10 {
				try("old", "right", packets.Success)
				try("new", "right", packets.Success)
			}
			for range 3 {
				// as a name that was never there gets: it does not tell who was
				try("old", "wrong", packets.ConnectionRateExceeded)
			}
			try("old", "right", packets.ConnectionRateExceeded)
			time.Sleep(8 * time.Second) // room for one more failure of the address, not of a name
			try("old", "right", packets.ConnectionRateExceeded)
			try("another", "right", packets.Success)
			time.Sleep(12 * time.Second)
			try("old", "right", packets.Success)
		})
}

// Failures are counted before they have happened: however many come at once, no more are tried than
// may fail.
func TestGuessesThatComeAtOnceAreCounted(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxAuthFailures = 3 }, func(r *guardRig) {
		var mu sync.Mutex
		tried, answer := 0, make(chan struct{})
		r.grant = func(q *hooks.ConnectRequest) error {
			mu.Lock()
			tried++
			mu.Unlock()
			<-answer
			if string(q.Connect.Password) == "right" {
				return nil
			}
			return packets.Errorf(packets.BadUserNameOrPassword, "wrong")
		}
		codes := make(chan int, 50)
		for i := range 50 {
			go func() { // waited for below
				p := login("u", "wrong")
				p.ClientID = fmt.Sprint(i)
				c, code := r.connectFrom("192.0.2.1", p)
				c.nc.Close()
				codes <- code
			}()
		}
		synctest.Wait()
		close(answer)
		got := map[packets.ReasonCode]int{}
		for range 50 {
			got[packets.ReasonCode(<-codes)]++
		}
		require.Equal(t, map[packets.ReasonCode]int{packets.BadUserNameOrPassword: 3,
			packets.ConnectionRateExceeded: 47}, got)
		require.Equal(t, 3, tried)

		for range 50 { // what succeeds costs nothing
			c, code := r.connectFrom("192.0.2.2", login("u", "right"))
			require.Zero(t, code)
			c.close()
		}
	})
}

func TestFailedAuthenticationsSlowANameDown(t *testing.T) {
	withRules(t, everything, func(c *Config) { c.MaxAuthFailures = 3 }, func(r *guardRig) {
		asked := 0
		answer := error(packets.Errorf(packets.BadUserNameOrPassword, "wrong"))
		r.grant = func(q *hooks.ConnectRequest) error {
			asked++
			if string(q.Connect.Password) == "right" {
				return nil
			}
			return answer
		}
		try := func(addr, password string, want packets.ReasonCode) {
			t.Helper()
			c, code := r.connectFrom(addr, login("u", password))
			require.Equal(t, int(want), code)
			c.close()
		}
		for range 3 {
			try("192.0.2.1", "wrong", packets.BadUserNameOrPassword)
		}
		asked = 0
		try("192.0.2.1", "wrong", packets.ConnectionRateExceeded)
		try("192.0.2.1", "right", packets.ConnectionRateExceeded)
		v3 := login("u", "right")
		v3.Version, v3.Properties = packets.V311, nil
		_, code := r.connectFrom("192.0.2.1", v3)
		require.EqualValues(t, 3, packets.ReasonCode(code).ReturnCode(),
			"Server unavailable, in 3.1.1")
		require.Zero(t, asked, "nobody looks at the password")
		try("192.0.2.2", "right", packets.Success)
		time.Sleep(20 * time.Second)
		try("192.0.2.1", "wrong", packets.BadUserNameOrPassword)
		try("192.0.2.1", "right", packets.ConnectionRateExceeded)
		time.Sleep(20 * time.Second)
		try("192.0.2.1", "right", packets.Success)
		try("192.0.2.1", "right", packets.Success)

		answer = fmt.Errorf("the database is down")
		for range 10 {
			try("192.0.2.3", "wrong", packets.NotAuthorized)
		}
		answer = packets.Errorf(packets.ServerBusy, "come back later")
		for range 10 {
			try("192.0.2.3", "wrong", packets.ServerBusy)
		}
		try("192.0.2.3", "right", packets.Success)
	})
}

// Whoever has an account could otherwise log in with it, and guess the password of another one, as
// often as it likes.
func TestAFailedReauthenticationCounts(t *testing.T) {
	guess := false
	withRules(t, everything, func(c *Config) {
		c.MaxAuthFailures = 3
		c.EnhancedAuth = map[string]hooks.EnhancedAuthenticator{"x": hooks.EnhancedAuthenticatorFunc(
			func(context.Context, *hooks.ConnectRequest) (hooks.Exchange, error) {
				if guess {
					return nil, packets.Errorf(packets.NotAuthorized, "wrong")
				}
				return doneAtOnce{}, nil
			})}
	}, func(r *guardRig) {
		own := login("u", "right")
		method := packets.Properties(nil).AppendText(packets.AuthenticationMethod, "x")
		own.Properties = append(own.Properties, method...)
		for range 3 {
			c, code := r.connectFrom("192.0.2.1", own)
			require.Zero(t, code)
			guess = true
			c.send(&packets.Auth{Code: packets.ReAuthenticate, Properties: method})
			require.Equal(t, packets.NotAuthorized, c.recv().(*packets.Disconnect).Code)
			c.close()
			guess = false
		}
		_, code := r.connectFrom("192.0.2.1", own)
		require.EqualValues(t, packets.ConnectionRateExceeded, code)
	})
}
