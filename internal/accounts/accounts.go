// Package accounts finds the names of a machine's users and groups, also of
// those that a directory service has.
package accounts

import (
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// User is an account, as passwd(5) has it.
type User struct{ Name, Home string }

// ErrUnknown says that the machine has no account of a number.
var ErrUnknown = errors.New("no such account on this machine")

// LookupUser finds an account by its number. os/user reads /etc/passwd alone in
// a binary without C; getent(1) asks whatever nsswitch.conf(5) names.
func LookupUser(uid uint32) (User, error) {
	const fields, home = 7, 5
	if u, err := user.LookupId(number(uid)); err == nil {
		return User{Name: u.Username, Home: u.HomeDir}, nil
	}
	f, err := getent("passwd", uid, fields)
	if err != nil {
		return User{}, err
	}
	return User{Name: f[0], Home: f[home]}, nil
}

// LookupGroup finds the name of a group by its number.
func LookupGroup(gid uint32) (string, error) {
	const fields = 4
	if g, err := user.LookupGroupId(number(gid)); err == nil {
		return g.Name, nil
	}
	f, err := getent("group", gid, fields)
	if err != nil {
		return "", err
	}
	return f[0], nil
}

func number(id uint32) string { return strconv.FormatUint(uint64(id), 10) }

// getent reads an entry of a database.
func getent(database string, id uint32, fields int) ([]string, error) {
	out, err := exec.Command("getent", database, number(id)).Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %d in %s", ErrUnknown, id, database)
	}
	return parse(string(out), id, fields)
}

// parse reads the first line of what getent says, which must be of a number.
func parse(out string, id uint32, fields int) ([]string, error) {
	line, _, _ := strings.Cut(out, "\n")
	f := strings.Split(line, ":")
	if len(f) != fields || f[0] == "" || f[2] != number(id) {
		return nil, fmt.Errorf("%w: getent says %q of %d", ErrUnknown, line, id)
	}
	return f, nil
}
