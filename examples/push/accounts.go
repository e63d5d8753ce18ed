package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// This file is what the API does with accounts, groups and sessions.

// An account is an answer.
type account struct {
	Account  string    `json:"account"`
	Online   bool      `json:"online"`
	Groups   []string  `json:"groups"`
	Devices  []string  `json:"devices"`
	Sessions []session `json:"sessions"`
}

// A member is somebody in a group.
type member struct {
	Name   string `json:"name"`
	Online bool   `json:"online"`
}

// A group is an answer.
type group struct {
	Name    string   `json:"name"`
	Members []member `json:"members"`
}

// A me is an answer.
type me struct {
	Account string   `json:"account"`
	Expires second   `json:"expires"`
	Groups  []group  `json:"groups"`
	Devices []member `json:"devices"`
}

// An askSession is what a backend asks for.
type askSession struct {
	TTL   int64  `json:"ttl"` // seconds; 90 days if it is missing
	Label string `json:"label"`
}

// subject is what the path names first, as users/ann.
func (c *call) subject() string {
	return strings.Split(c.Pattern, "/")[2] + "/" + c.PathValue("name")
}

// membership is the account that the path names, and the topic that it is to get.
func (c *call) membership() (account, topic string) {
	topic = c.subject()
	if strings.HasPrefix(topic, "devices/") {
		topic += "/events"
	}
	return "users/" + c.PathValue("user"), topic
}

func putAccount(c *call) (any, error) {
	isNew, err := c.db.addAccount(c.Context(), c.subject())
	if err != nil || !isNew {
		return nil, err
	}
	return created{map[string]string{"account": c.subject()}}, c.changed(c.Context(), c.subject())
}

func getAccount(c *call) (any, error) {
	if err := c.db.mustHave(c.Context(), c.subject()); err != nil {
		return nil, err
	}
	return c.account(c.Context(), c.subject())
}

func (s *service) account(ctx context.Context, name string) (a account, err error) {
	topics, err := s.db.topics(ctx, name)
	if err != nil {
		return a, err
	}
	a = account{Account: name, Online: s.online.has(name), Groups: []string{}, Devices: []string{}}
	for _, topic := range topics {
		if group, ok := strings.CutPrefix(topic, "groups/"); ok {
			a.Groups = append(a.Groups, group)
		} else {
			a.Devices = append(a.Devices, strings.Split(topic, "/")[1])
		}
	}
	a.Sessions, err = s.db.sessions(ctx, name)
	return a, err
}

func deleteAccount(c *call) (any, error) {
	owners, err := c.db.removeAccount(c.Context(), c.subject())
	if err != nil {
		return nil, err
	}
	return nil, c.changed(c.Context(), append(owners, c.subject(), "")...)
}

func postSession(c *call) (any, error) {
	var asked askSession
	text, err := c.text()
	if err == nil && len(text) > 0 {
		err = strict(text, &asked)
	}
	if err != nil {
		return nil, err
	}
	life := defaultLife
	switch {
	case asked.TTL < 0 || asked.TTL > int64(maxLife/time.Second):
		return nil, fail(http.StatusBadRequest, "ttl is in seconds, at most 400 days")
	case len(asked.Label) > maxLabelBytes:
		return nil, fail(http.StatusBadRequest, "label has more than %d bytes", maxLabelBytes)
	case asked.TTL > 0:
		life = time.Duration(asked.TTL) * time.Second
	}
	x, err := c.db.issue(c.Context(), c.subject(), asked.Label, life)
	return created{x}, err
}

func deleteSession(c *call) (any, error) {
	found, err := c.db.revoke(c.Context(), c.PathValue("id"))
	if err == nil && !found {
		err = fail(http.StatusNotFound, "there is no such session")
	}
	if err != nil {
		return nil, err
	}
	return nil, c.changed(c.Context(), "")
}

func signOut(c *call) (any, error) {
	if _, err := c.db.revoke(c.Context(), c.session.ID); err != nil {
		return nil, err
	}
	return nil, c.changed(c.Context(), "")
}

func refresh(c *call) (any, error) {
	x, err := c.db.refresh(c.Context(), c.session)
	return created{x}, err
}

func join(c *call) (any, error) {
	user, topic := c.membership()
	if device, ok := strings.CutSuffix(topic, "/events"); ok {
		if err := c.db.mustHave(c.Context(), device); err != nil {
			return nil, err
		}
	}
	if err := c.db.join(c.Context(), user, topic); err != nil {
		return nil, err
	}
	return nil, c.changed(c.Context(), user)
}

func leave(c *call) (any, error) {
	user, topic := c.membership()
	found, err := c.db.leave(c.Context(), user, topic)
	if err == nil {
		err = c.changed(c.Context(), user)
	}
	if err == nil && !found {
		err = fail(http.StatusNotFound, "%s is not there", user)
	}
	return nil, err
}

func getGroup(c *call) (any, error) {
	g, err := c.group(c.Context(), c.PathValue("name"))
	if err == nil && len(g.Members) == 0 {
		return nil, fail(http.StatusNotFound, "there is nobody in the group %s", g.Name)
	}
	return g, err
}

func (s *service) group(ctx context.Context, name string) (group, error) {
	g := group{Name: name}
	members, err := s.db.members(ctx, "groups/"+name)
	for _, m := range members {
		g.Members = append(g.Members, member{strings.TrimPrefix(m, "users/"), s.online.has(m)})
	}
	return g, err
}

// getMe tells a client about its own account: what the page shows.
func getMe(c *call) (any, error) {
	a, err := c.account(c.Context(), c.session.Account)
	if err != nil {
		return nil, err
	}
	answer := me{a.Account, c.session.Expires, []group{}, []member{}}
	for _, name := range a.Groups {
		g, err := c.group(c.Context(), name)
		if err != nil {
			return nil, err
		}
		answer.Groups = append(answer.Groups, g)
	}
	for _, d := range a.Devices {
		answer.Devices = append(answer.Devices, member{d, c.online.has("devices/" + d)})
	}
	return answer, nil
}

func getOpenAPI(*call) (any, error) { return json.RawMessage(openAPI), nil }
