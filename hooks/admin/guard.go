package admin

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// This file is what a request has to pass before anything is done for it.

// maxBody is the longest body of a request.
const maxBody = 1 << 20

// policy lets a page load only what is embedded here, and lets no other page frame it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"require-trusted-types-for 'script'; trusted-types 'none'"

// ServeHTTP serves one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Content-Security-Policy", policy)
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("X-Frame-Options", "DENY")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Cross-Origin-Opener-Policy", "same-origin")
	head.Set("Cross-Origin-Resource-Policy", "same-origin")
	head.Set("Cache-Control", "no-store")
	who, err := h.admit(r)
	if err != nil {
		h.log.Debug("a request was refused", "remote", r.RemoteAddr, "user", who.User,
			"method", r.Method, "path", r.URL.Path, "err", err)
		if p := asProblem(err); p.status == http.StatusUnauthorized && h.opts.Challenge != "-" {
			head.Set("WWW-Authenticate", h.challenge())
		}
		answerProblem(w, err)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	h.serve(w, r, who)
}

func (h *Handler) challenge() string {
	if h.opts.Challenge == "" {
		return `Basic realm="Dunlin", charset="UTF-8"`
	}
	return h.opts.Challenge
}

// admit says who sends r, or why r is refused.
func (h *Handler) admit(r *http.Request) (who Identity, err error) {
	if h.opts.Authorize == nil {
		return who, fail(http.StatusForbidden, "closed",
			"nobody may use this page: the program has set no Options.Authorize")
	}
	if !allowedHost(r.Host, h.opts.Hosts) {
		return who, fail(http.StatusMisdirectedRequest, "host", "the Host of the request is not "+
			"one that this page is known by: add it to Options.Hosts")
	}
	if err := h.sameSite(r); err != nil {
		return who, fail(http.StatusForbidden, "cross_site", "the request comes from another site")
	}
	if h.opts.OpenProbes && (r.URL.Path == "/livez" || r.URL.Path == "/readyz") {
		if who, err = h.opts.Authorize(r); err != nil {
			who = Identity{}
		}
		return who, nil
	}
	if who, err = h.opts.Authorize(r); err != nil {
		if p := new(problem); errors.As(err, &p) {
			return who, p
		}
		return who, fail(http.StatusUnauthorized, "unauthenticated", "the request says not, or "+
			"not rightly, who sends it")
	}
	if who.Role < RoleRead || who.Role > RoleAct {
		return who, fail(http.StatusForbidden, "forbidden", "you have no role here")
	}
	return who, nil
}

// sameSite returns an error for a request that a page of another site has made. A link to the
// dashboard, which shows nothing to that page, may be on any page.
func (h *Handler) sameSite(r *http.Request) error {
	if r.Method == http.MethodGet && r.URL.Path == "/" &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" &&
		r.Header.Get("Sec-Fetch-Dest") == "document" {
		return nil
	}
	strict := *r
	strict.Method = http.MethodPost // all others are safe for Check, and GET shows packets here
	return h.cross.Check(&strict)
}

// allowedHost says whether the Host of a request, which may have a port, is one of names, of this
// machine, or an IP address. No attacker can point a name of the last two kinds elsewhere.
func allowedHost(host string, names []string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	return slices.ContainsFunc(names, func(name string) bool {
		return strings.ToLower(strings.TrimSuffix(name, ".")) == host
	})
}
