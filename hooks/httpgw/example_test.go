package httpgw_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/httpgw"
)

// A sensor that speaks HTTP publishes, and a page reads what was retained.
func ExampleNew() {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	door, err := httpgw.New(b, httpgw.Options{})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/mqtt/", http.StripPrefix("/mqtt", door))
	server := httptest.NewServer(mux) // with http.ListenAndServeTLS in a real program
	defer server.Close()

	lamp := server.URL + "/mqtt/topics/lamp"
	resp, err := http.Post(lamp+"?qos=1&retain=1", "text/plain", strings.NewReader("on"))
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	if resp, err = http.Get(lamp); err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	state, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(state))
	// Output: 200 on
}
