package engine

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// span is a part of a text that is to be kept back.
type span struct{ from, to int }

var (
	// userinfo is what may hold a password: greedy, because a password whose
	// special characters are not coded may hold anything but white space.
	userinfo = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`://[^\s:/@,]*:(\S*)@`) })
	// slip is what was meant as the URL of an engine, whatever follows the scheme.
	slip = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?i)\b(mysql|mariadb|rediss?(?:\+[a-z]+)?):/*(\S*)@`)
	})
	// source is how MySQL's driver for Go has it.
	source = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[^\s:]*:(\S*)@(?:tcp|unix)\(`) })
	// passwordParam is a parameter that holds one.
	passwordParam = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)[?&][^\s=&]*password=([^\s&]+)`) })
	// schemed begins a URL.
	schemed = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`) })
)

// secretSpans returns where the passwords of the URLs in a text are.
func secretSpans(text string) []span {
	at := strings.Contains(text, "@")
	if !at && !strings.ContainsAny(text, "?&") {
		return nil // nearly all: the expressions take a while to make
	}
	var spans []span
	add := func(expression *regexp.Regexp) {
		for _, m := range expression.FindAllStringSubmatchIndex(text, -1) {
			spans = append(spans, span{m[2], m[3]})
		}
	}
	add(passwordParam())
	if !at {
		return spans
	}
	add(userinfo())
	add(source())
	for _, m := range slip().FindAllStringSubmatchIndex(text, -1) {
		spans = append(spans, withinUser(text[m[2]:m[3]], text, span{m[4], m[5]})...)
	}
	return spans
}

// urlSpans returns where the passwords are in a text that is meant as a URL.
// Where it is none, all up to its last @ may be.
func urlSpans(text string) []span {
	spans := secretSpans(text)
	at := strings.LastIndexByte(text, '@')
	if at < 0 {
		return spans
	}
	scheme := schemed().FindString(text)
	if scheme == "" {
		return append(spans, span{0, at})
	}
	return append(spans, withinUser(scheme, text, span{len(scheme), at})...)
}

// withinUser returns what of the part of a URL before its @ is kept back: what
// follows the user, and all where there is no user without a password.
func withinUser(scheme, text string, s span) []span {
	colon := strings.IndexByte(text[s.from:s.to], ':')
	if colon < 0 && !passwordAlone(scheme) {
		return nil
	}
	return []span{{s.from + colon + 1, s.to}}
}

// passwordAlone reports whether what stands alone before the @ of such URLs may
// be the password: Redis has one without a user.
func passwordAlone(scheme string) bool { return strings.HasPrefix(strings.ToLower(scheme), "redis") }

// spans returns where r may hold a password.
func (r Ref) spans() []span {
	if text := string(r); strings.HasPrefix(text, "@") || strings.HasPrefix(text, "env:") {
		return secretSpans(text)
	}
	return urlSpans(string(r))
}

// Redact returns text with the passwords of the URLs in it replaced by stars.
// It rather takes away too much. The word "password" itself, as examples have
// it, stays.
func Redact(text string) string {
	spans := slices.DeleteFunc(secretSpans(text), func(s span) bool { return text[s.from:s.to] == "password" })
	return cover(text, spans)
}

// cover replaces spans of a text by stars.
func cover(text string, spans []span) string {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var b strings.Builder
	done := 0
	for _, s := range spans {
		if s.to <= done || s.from == s.to {
			continue
		}
		if s.from >= done {
			b.WriteString(text[done:s.from] + stars)
		}
		done = s.to
	}
	return b.String() + text[done:]
}
