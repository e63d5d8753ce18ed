package admin_test

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/admin"
)

// The desk of one broker, for one operator, who may act. Its page is at the root of the server.
func Example() {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	check := func(_ context.Context, user, password string) (admin.Role, error) {
		// a real program compares with a hash, see hooks/auth
		if user != "ops" || subtle.ConstantTimeCompare([]byte(password), []byte("s3cret")) == 0 {
			return admin.RoleNone, errors.New("unknown user or wrong password")
		}
		return admin.RoleAct, nil
	}
	desk := admin.New(map[string]*dunlin.Broker{"main": b}, admin.Options{
		Authorize:  admin.Basic(check),
		OpenProbes: true, // an orchestrator has no password
	})
	defer desk.Close()
	server := httptest.NewServer(desk) // on a loopback address, or with TLS
	defer server.Close()

	get := func(path, password string) {
		r, _ := http.NewRequest(http.MethodGet, server.URL+path, nil)
		if password != "" {
			r.SetBasicAuth("ops", password)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			log.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		fmt.Println(path, resp.StatusCode)
	}
	get("/livez", "")
	get("/", "s3cret")
	get("/api/v1/brokers/main/stats", "s3cret")
	get("/api/v1/brokers/main/stats", "guess")
	// Output:
	// /livez 200
	// / 200
	// /api/v1/brokers/main/stats 200
	// /api/v1/brokers/main/stats 401
}
