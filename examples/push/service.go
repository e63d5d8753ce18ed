package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A user may connect with a token and listen to groups.
type user struct {
	token  [sha256.Size]byte // the hash of it
	groups []string
}

// A service knows the users, decides what their devices may do, and pushes. A real one would keep
// them in its database.
type service struct {
	hooks.Reloads // tells the broker that decisions have changed

	key    [sha256.Size]byte
	wait   time.Duration // for acknowledgements
	broker *dunlin.Broker

	mu    sync.Mutex
	users map[string]user
}

func newService(key string, wait time.Duration) *service {
	return &service{key: sha256.Sum256([]byte(key)), wait: wait, users: make(map[string]user)}
}

// Authenticate lets a device in whose user name and password are a user and the token of that. All
// devices of a user have one owner, so no other user can take their Sessions over.
func (s *service) Authenticate(_ context.Context, r *hooks.ConnectRequest) error {
	s.mu.Lock()
	u, ok := s.users[r.Client.Username]
	s.mu.Unlock()
	token := sha256.Sum256(r.Connect.Password)
	if subtle.ConstantTimeCompare(token[:], u.token[:]) != 1 || !ok {
		return packets.Errorf(packets.BadUserNameOrPassword, "unknown user or token")
	}
	r.Grant.Identity.Principal = r.Client.Username
	return nil
}

// Authorize lets devices subscribe to the topic of their user and to those of the user's groups,
// and to nothing else.
func (s *service) Authorize(_ context.Context, r *hooks.AccessRequest) error {
	name, _ := r.Client.User()
	s.mu.Lock()
	u := s.users[name]
	s.mu.Unlock()
	group, isGroup := strings.CutPrefix(r.Topic, "groups/")
	if r.Action == hooks.ActionSubscribe &&
		(r.Topic == "users/"+name || isGroup && slices.Contains(u.groups, group)) {
		return nil
	}
	return packets.Errorf(packets.NotAuthorized, "not for %s", name)
}

// Stable says that an answer holds until the next Reloaded.
func (s *service) Stable() bool { return true }

// handler serves the backend.
func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /users/{name}", s.putUser)
	mux.HandleFunc("DELETE /users/{name}", s.deleteUser)
	mux.HandleFunc("POST /users/{name}/messages", s.push("users/"))
	mux.HandleFunc("POST /groups/{name}/messages", s.push("groups/"))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if sum := sha256.Sum256([]byte(given)); subtle.ConstantTimeCompare(sum[:], s.key[:]) != 1 {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// putUser makes a user, or changes the groups of one. The answer has a token for the devices, a new
// one each time.
func (s *service) putUser(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	var body struct {
		Groups []string `json:"groups"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, n := range append([]string{name}, body.Groups...) {
		if n == "" || strings.ContainsAny(n, "/+#") || !packets.ValidTopicName(n) {
			http.Error(w, "a name must be one level of a topic", http.StatusBadRequest)
			return
		}
	}
	token := rand.Text()
	s.mu.Lock()
	s.users[name] = user{sha256.Sum256([]byte(token)), body.Groups}
	s.mu.Unlock()
	s.Reloaded() // subscriptions to groups that the user has left end now
	writeJSON(w, map[string]string{"token": token})
}

// deleteUser forgets a user and ends the Sessions of the user's devices.
func (s *service) deleteUser(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	s.mu.Lock()
	delete(s.users, name)
	s.mu.Unlock()
	s.Reloaded()
	for info := range s.broker.Sessions() {
		if info.Principal == name {
			if _, err := s.broker.DeleteSession(r.Context(), info.ClientID); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

// push publishes the body to a topic that begins with prefix. The answer says how many Sessions it
// was for, and how many have it by now.
func (s *service) push(prefix string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		m := &dunlin.Message{
			Topic: prefix + r.PathValue("name"), Payload: body, QoS: packets.QoS1,
		}
		m.SetExpiry(7 * 24 * time.Hour)
		m.SetContentType(r.Header.Get("Content-Type"))
		ctx, cancel := context.WithTimeout(r.Context(), s.wait)
		defer cancel()
		outcome, err := s.broker.PublishWait(ctx, m)
		if err != nil && !errors.Is(err, context.DeadlineExceeded) { // the others get it later
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, map[string]int{"sessions": outcome.Matched,
			"acknowledged": outcome.Acknowledged})
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}
