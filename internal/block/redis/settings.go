package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/koinon/koinon/internal/sys"
)

// Settings are what a server does to keep its data. A field is "" when the
// server does not tell.
type Settings struct {
	Addr       string
	AppendOnly string // yes, no
	Fsync      string // appendfsync: always, everysec, no
	Save       string // when it writes snapshots, like "3600 1"; "never"
	Policy     string // maxmemory-policy
}

// Settings asks each master what it does.
func (s *Store) Settings(ctx context.Context) ([]Settings, error) {
	masters, err := s.masters(ctx)
	if err != nil {
		return nil, err
	}
	var all []Settings
	for _, m := range masters {
		x, err := settings(ctx, m)
		if err != nil {
			return nil, s.explain(ctx, "redis.Settings", sys.Subject(m.Options().Addr), err)
		}
		all = append(all, x)
	}
	return all, nil
}

func settings(ctx context.Context, c *redis.Client) (Settings, error) {
	x := Settings{Addr: c.Options().Addr}
	for _, p := range []struct {
		name string
		to   *string
	}{{"appendonly", &x.AppendOnly}, {"appendfsync", &x.Fsync}, {"save", &x.Save}, {"maxmemory-policy", &x.Policy}} {
		m, err := c.ConfigGet(ctx, p.name).Result()
		if _, refused := errors.AsType[redis.Error](err); refused {
			return x, x.fromInfo(ctx, c) // as managed services do
		}
		if err != nil {
			return x, err
		}
		*p.to = m[p.name]
		if p.name == "save" && *p.to == "" {
			*p.to = "never"
		}
	}
	return x, nil
}

// fromInfo takes what INFO tells of the settings.
func (x *Settings) fromInfo(ctx context.Context, c *redis.Client) error {
	persistence, err := info(ctx, c, "persistence")
	if err != nil {
		return err
	}
	memory, err := info(ctx, c, "memory")
	if err != nil {
		return err
	}
	x.Policy = memory["maxmemory_policy"]
	switch persistence["aof_enabled"] {
	case "1":
		x.AppendOnly = "yes"
	case "0":
		x.AppendOnly = "no"
	}
	return nil
}

// Volatile says why the server may lose blocks without telling, and what to
// set; "" when it does not.
func (x Settings) Volatile() string {
	var why []string
	switch {
	case x.AppendOnly == "yes":
	case x.Save == "never":
		why = append(why, "it keeps nothing on disk: set appendonly yes, and appendfsync always or everysec")
	case x.Save == "":
		why = append(why, "it does not tell whether it keeps its data on disk: set appendonly yes")
	}
	switch {
	case strings.HasPrefix(x.Policy, "allkeys-"):
		why = append(why, fmt.Sprintf("it throws data away when its memory is full (maxmemory-policy %s): set maxmemory-policy noeviction", x.Policy))
	case x.Policy == "":
		why = append(why, "it does not tell what it does when its memory is full: set maxmemory-policy noeviction")
	}
	if len(why) == 0 {
		return ""
	}
	return x.Addr + ": " + strings.Join(why, "; ")
}

// Promise says in words what an acknowledged block survives.
func (x Settings) Promise() string {
	switch {
	case x.Volatile() != "":
		return "volatile: blocks may be lost at any moment"
	case x.AppendOnly == "yes" && x.Fsync == "always":
		return "synced before each answer"
	case x.AppendOnly == "yes" && x.Fsync == "everysec":
		return "synced every second: a power cut loses the last one"
	case x.AppendOnly == "yes":
		return "synced when the kernel likes: a power cut loses the last half minute"
	}
	return "snapshots only: a crash of Redis loses all since the last one (save " + x.Save + ")"
}

// weakest orders promises.
var promises = []string{"volatile", "snapshots", "synced when", "synced every", "synced before"}

func strength(promise string) int {
	for i, p := range promises {
		if strings.HasPrefix(promise, p) {
			return i
		}
	}
	return 0
}

// Promise is what all masters together promise, that of the weakest.
func Promise(all []Settings) string {
	least := ""
	for _, x := range all {
		if p := x.Promise(); least == "" || strength(p) < strength(least) {
			least = p
		}
	}
	return least
}

// Volatile is an error when a server may lose blocks without telling.
func Volatile(all []Settings) error {
	var why []string
	for _, x := range all {
		if v := x.Volatile(); v != "" {
			why = append(why, v)
		}
	}
	if len(why) == 0 {
		return nil
	}
	return sys.E(sys.Op("redis.Open"), sys.Invalid, "Redis may silently lose blocks: "+strings.Join(why, "; ")+"; or take the loss and give --accept-volatile-blocks")
}
