package engine

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

const op = sys.Op("engine URL")

// Secret is a password. It prints as three stars, whatever the verb.
type Secret string

const stars = "***"

// String returns stars.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return stars
}

// Format implements fmt.Formatter, for the verbs that ask no String.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Reveal returns the password itself.
func (s Secret) Reveal() string { return string(s) }

// URL is the address of an engine, taken apart. It prints without its secrets.
type URL struct {
	Scheme   string
	User     string
	Password Secret
	// Addrs are host or host:port, none with a socket.
	Addrs []string
	// Path is what follows the first slash, decoded.
	Path string
	// params are the parameters, decoded.
	params map[string]string
}

// Parse takes a URL apart. Unlike net/url it knows several hosts, and its
// errors never quote a secret.
func Parse(text string) (*URL, error) {
	text = strings.TrimSpace(text)
	bad := func(format string, args ...any) (*URL, error) {
		return nil, sys.E(op, sys.Invalid, sys.Subject(cover(text, urlSpans(text))), fmt.Sprintf(format, args...))
	}
	if !schemed().MatchString(text) {
		return bad("write it as scheme://user:password@host:port/..., such as mysql://user:password@host:3306/database or redis://:password@host:6379/0")
	}
	scheme, rest, _ := strings.Cut(text, "://")
	u := &URL{Scheme: strings.ToLower(scheme), params: make(map[string]string)}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, tail := rest[:end], rest[end:]
	path, query, _ := strings.Cut(tail, "?")
	name, _, _ := strings.Cut(query, "=")
	// An @ there ends a password that began before.
	if strings.Contains(tail, "#") || strings.Contains(tail, "@") && !strings.Contains(authority, "@") || strings.Contains(path+name, "@") {
		return bad("it holds a character that must be written as its code: %%2F for /, %%3F for ?, %%23 for #, %%40 for @, %%25 for %%")
	}
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, password, _ := strings.Cut(authority[:at], ":")
		authority = authority[at+1:]
		var err error
		if u.User, err = url.PathUnescape(user); err != nil {
			return bad("the user's name holds a %% that starts no code: write %%25")
		}
		if password, err = url.PathUnescape(password); err != nil {
			return bad("the password holds a %% that starts no code: write %%25")
		}
		u.Password = Secret(password)
	}
	var err error
	if u.Path, err = url.PathUnescape(strings.TrimPrefix(path, "/")); err != nil {
		return bad("the path holds a %% that starts no code: write %%25")
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return bad("the parameters after ? are not name=value&...")
	}
	for name, v := range values {
		if len(v) != 1 {
			return bad("%q is given %d times", name, len(v))
		}
		u.params[name] = v[0]
	}
	if authority != "" {
		u.Addrs = strings.Split(authority, ",")
	}
	if problem := u.checkAddrs(); problem != "" {
		return bad("%s", problem)
	}
	return u, nil
}

func (u *URL) checkAddrs() string {
	if u.params["socket"] != "" {
		if len(u.Addrs) > 0 {
			return "give a host or a socket, not both"
		}
		return ""
	}
	if len(u.Addrs) == 0 {
		return "it names no host"
	}
	for _, addr := range u.Addrs {
		host, port, err := net.SplitHostPort(addr)
		if err != nil { // then it should be a host alone
			host, port = addr, "1"
			if strings.Contains(strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]"), ":") != strings.HasPrefix(addr, "[") {
				return fmt.Sprintf("%q is no host:port", addr)
			}
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" || strings.ContainsAny(host, " \t") {
			return fmt.Sprintf("%q is no host:port", addr)
		}
	}
	return ""
}

// HostPorts returns the addresses with the port for those that name none.
func (u *URL) HostPorts(port int) []string {
	out := make([]string, len(u.Addrs))
	for i, addr := range u.Addrs {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			addr = net.JoinHostPort(strings.Trim(addr, "[]"), strconv.Itoa(port))
		}
		out[i] = addr
	}
	return out
}

// Param returns a parameter, "" when it is not there.
func (u *URL) Param(name string) string { return u.params[name] }

// Check returns an Invalid error when there are parameters beside those that
// every engine knows and the named ones.
func (u *URL) Check(known ...string) error {
	known = append([]string{"ca", "cert", "key", "server-name", "socket"}, known...)
	for _, name := range slices.Sorted(maps.Keys(u.params)) {
		if !slices.Contains(known, name) {
			return sys.E(op, sys.Invalid, sys.Subject(u.String()),
				fmt.Sprintf("parameter %q is not known: use %s", name, strings.Join(known, ", ")))
		}
	}
	return nil
}

// String returns the URL without its secrets.
func (u *URL) String() string {
	var b strings.Builder
	b.WriteString(u.Scheme + "://")
	if u.User != "" || u.Password != "" {
		if u.Password == "" && passwordAlone(u.Scheme) {
			b.WriteString(stars)
		} else {
			b.WriteString(url.PathEscape(u.User))
		}
		if u.Password != "" {
			b.WriteString(":" + stars)
		}
		b.WriteByte('@')
	}
	b.WriteString(strings.Join(u.Addrs, ","))
	if u.Path != "" {
		b.WriteString("/" + (&url.URL{Path: u.Path}).EscapedPath())
	}
	for i, name := range slices.Sorted(maps.Keys(u.params)) {
		value := (&url.URL{Path: u.params[name]}).EscapedPath()
		if secretParam(name) {
			value = stars
		}
		b.WriteByte("?&"[min(i, 1)])
		b.WriteString(url.QueryEscape(name) + "=" + value)
	}
	return b.String()
}

// GoString is String, for %#v.
func (u *URL) GoString() string { return u.String() }

// LogValue implements slog.LogValuer.
func (u *URL) LogValue() slog.Value { return slog.StringValue(u.String()) }

func secretParam(name string) bool { return strings.HasSuffix(strings.ToLower(name), "password") }
