package httpgw

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is who sends a request, and how much of the door one user may take.

// A visitor is who sends a request.
type visitor struct {
	client *hooks.Client
	grant  hooks.Grant
	user   string // what it counts for
}

// visit serves a route for clients that the broker has let in.
func (h *Handler) visit(
	serve func(w http.ResponseWriter, r *http.Request, v *visitor),
) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if h.foreign(r) {
			http.Error(w, "not for pages of this site", http.StatusForbidden)
			return
		}
		v, p := visitorOf(r)
		address := v.user
		if err := h.users.begin(address); err != nil {
			fail(w, err)
			return
		}
		err := h.admit(r.Context(), v, p)
		if err == nil && v.user != address {
			err = h.users.begin(v.user)
		}
		if err != nil || v.user != address {
			h.users.end(address)
		}
		switch packets.CodeOf(err) {
		case packets.Success:
			defer h.users.end(v.user)
			serve(w, r, v)
		case packets.NotAuthorized, packets.BadUserNameOrPassword,
			packets.BadAuthenticationMethod:
			w.Header().Set("WWW-Authenticate", `Basic realm="mqtt", charset="UTF-8"`)
			http.Error(w, "not authenticated", http.StatusUnauthorized)
		default:
			fail(w, err)
		}
	}
}

// visitorOf reads who a request claims to be from. Until that is known it counts for its address.
func visitorOf(r *http.Request) (*visitor, *packets.Connect) {
	v := &visitor{client: &hooks.Client{Version: packets.V5, CleanStart: true, TLS: r.TLS}}
	if at, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		v.client.RemoteAddr = net.TCPAddrFromAddrPort(at)
	}
	v.client.LocalAddr, _ = r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	network, _ := v.client.Network()
	v.user = "address " + network.String()
	p := &packets.Connect{Version: packets.V5, CleanStart: true}
	if user, pass, ok := r.BasicAuth(); ok {
		p.HasUsername, p.Username, p.HasPassword, p.Password = true, user, true, []byte(pass)
	} else if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		p.HasPassword, p.Password = true, []byte(token)
	}
	v.client.Username, v.client.HasUsername = p.Username, p.HasUsername
	return v, p
}

// maxCredential is the longest User Name and password that a CONNECT can have.
const maxCredential = 65_535

// admit has the broker decide who v is. Then v counts for its principal, if that is verified.
func (h *Handler) admit(ctx context.Context, v *visitor, p *packets.Connect) error {
	if !packets.ValidUTF8(p.Username) || len(p.Username) > maxCredential ||
		len(p.Password) > maxCredential {
		return packets.Errorf(packets.MalformedPacket,
			"the User Name is not UTF-8, or it or the password is too long")
	}
	if a := v.client.RemoteAddr; a != nil {
		if err := h.b.Admits(a); err != nil {
			return err
		}
	}
	r := &hooks.ConnectRequest{Client: v.client, Connect: p, Grant: &v.grant}
	if err := h.b.Authenticate(ctx, r); err != nil {
		return err
	}
	if at := v.grant.Expires; !at.IsZero() && !at.After(time.Now()) {
		return packets.Errorf(packets.NotAuthorized, "the Grant has expired")
	}
	if id := &v.client.Identity; id.Principal != "" && !id.Unverified {
		v.user = "user " + id.Principal
	}
	return nil
}

// users are those who take something of the door.
type users struct {
	o *Options

	mu  sync.Mutex
	of  map[string]*user // guarded by mu, as are the next
	all user             // all together
}

// A user is what one user takes. Guarded by users.mu.
type user struct {
	requests, filters int
	kept, bodies      int64 // bytes of events, and of bodies that are being received or sent
}

// change changes what a user takes, unless that is refused.
func (u *users) change(name string, f func(one, all *user) error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	x := u.of[name]
	if x == nil {
		x = new(user)
		u.of[name] = x
	}
	err := f(x, &u.all)
	if *x == (user{}) {
		delete(u.of, name)
	}
	return err
}

// begin counts a request. end must follow, if there is no error.
func (u *users) begin(name string) error {
	return u.change(name, func(one, all *user) error {
		if all.requests >= u.o.MaxRequests || one.requests >= u.o.MaxPerUser {
			return packets.Errorf(packets.QuotaExceeded, "too many requests at a time")
		}
		one.requests++
		all.requests++
		return nil
	})
}

func (u *users) end(name string) {
	u.change(name, func(one, all *user) error {
		one.requests--
		all.requests--
		return nil
	})
}

// filter counts a Topic Filter that is kept, or one less.
func (u *users) filter(name string, n int) error {
	return u.change(name, func(one, _ *user) error {
		if n > 0 && one.filters+n > u.o.MaxPerUser {
			return packets.Errorf(packets.QuotaExceeded, "too many filters")
		}
		one.filters += n
		return nil
	})
}

// share is how much of KeepBytes is for one user: one part in so many.
const share = 4

// keep counts n bytes of events and says whether there is room for them. A negative n gives back.
func (u *users) keep(name string, n int64) bool {
	return nil == u.change(name, func(one, all *user) error {
		if n > 0 && (all.kept+n > u.o.KeepBytes || one.kept+n > u.o.KeepBytes/share) {
			return errNoRoom
		}
		one.kept += n
		all.kept += n
		return nil
	})
}

// carry counts n bytes of a body that is being received or sent, as keep does.
func (u *users) carry(name string, n int64) error {
	return u.change(name, func(one, all *user) error {
		if n > 0 && (all.bodies+n > u.o.KeepBytes || one.bodies+n > u.o.KeepBytes/share) {
			return errNoRoom
		}
		one.bodies += n
		all.bodies += n
		return nil
	})
}

var errNoRoom = packets.Errorf(packets.QuotaExceeded, "too much is being sent at a time")
