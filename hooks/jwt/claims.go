package jwt

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// Names of the Attributes that hold the filters of a token for the Authorizer, one filter in a
// line. No claim can have these names: they are not in the Attributes of the Options.
const (
	publishAttribute   = "\x00publish"
	subscribeAttribute = "\x00subscribe"
)

// identity makes the Identity of claims.
func (t *Tokens) identity(claims map[string]any) (i hooks.Identity, err error) {
	c := &t.o.Claims
	if i.Principal, err = text(claims, c.Principal); err != nil {
		return i, err
	}
	if err := checkName(i.Principal); err != nil {
		return i, fmt.Errorf("the claim %s %w", c.Principal, err)
	}
	if i.Tenant, err = text(claims, c.Tenant); err != nil {
		return i, err
	}
	if v := find(claims, c.Roles); v != nil {
		if s, ok := v.(string); ok {
			i.Roles = strings.Fields(s)
		} else if i.Roles, err = texts(v, c.Roles); err != nil {
			return i, err
		}
	}
	i.Attributes = map[string]string{}
	for _, name := range c.Attributes {
		switch v := find(claims, name).(type) {
		case nil:
		case string:
			i.Attributes[name] = v
		default:
			b, err := json.Marshal(v)
			if err != nil {
				return i, fmt.Errorf("the claim %s: %w", name, err)
			}
			i.Attributes[name] = string(b)
		}
	}
	for attribute, name := range map[string]string{publishAttribute: c.Publish,
		subscribeAttribute: c.Subscribe} {
		v := find(claims, name)
		if v == nil {
			continue
		}
		filters, err := texts(v, name)
		if err != nil {
			return i, err
		}
		for _, f := range filters {
			if err := checkFilter(f); err != nil {
				return i, fmt.Errorf("the claim %s: %q %w", name, f, err)
			}
		}
		i.Attributes[attribute] = strings.Join(filters, "\n")
	}
	return i, nil
}

func checkFilter(f string) error {
	if strings.ContainsFunc(f, unicode.IsControl) || !packets.ValidTopicFilter(f) {
		return errors.New("is not a topic filter")
	}
	if _, inner, err := packets.SplitShared(f); err != nil || inner != f {
		return errors.New("is a shared subscription: these are decided by the filter inside")
	}
	return nil
}

// find returns a claim, nil if it is not there or null.
func find(claims map[string]any, name string) any {
	if v, ok := claims[name]; ok {
		return v
	}
	outer, inner, found := strings.Cut(name, ".")
	if in, ok := claims[outer].(map[string]any); found && ok {
		return find(in, inner)
	}
	return nil
}

// text returns a claim that is a string, empty if it is not there.
func text(claims map[string]any, name string) (string, error) {
	switch v := find(claims, name).(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	}
	return "", fmt.Errorf("the claim %s is not a string", name)
}

// texts returns the strings of a claim that is an array of them, or one.
func texts(v any, name string) (of []string, err error) {
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case []any:
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil, fmt.Errorf("the claim %s holds something that is not a string", name)
			}
			of = append(of, s)
		}
		return of, nil
	}
	return nil, fmt.Errorf("the claim %s is not an array of strings", name)
}
