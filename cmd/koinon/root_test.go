package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// A command line that names a subcommand has only that one made. It must be the
// one of that name, and other command lines must see all.
func TestOnlyTheNamedCommandIsMade(t *testing.T) {
	all := len(newRootCommand(&app{}).Commands())
	for _, cmds := range subcommands(&app{}) {
		for _, c := range cmds {
			made := c.make()
			if made.Name() != c.name || len(made.Aliases) > 0 {
				t.Errorf("%s is called %s, aliases %v", c.name, made.Name(), made.Aliases)
			}
		}
	}
	for line, want := range map[string]string{
		"run -- ls": "run", "--config x run": "run", "-o json ps -a": "ps", "--output=json ps": "ps", "-q status": "status", "-qo json status": "",
		"kv get x": "kv", "supervise /x": "supervise",
		"": "", "--help": "", "--config run": "", "help run": "", "completion bash": "", "__complete run ": "", "runn": "", "-": "", "--unknown run": "run",
	} {
		root := newRootCommandFor(&app{}, strings.Fields(line))
		var names []string
		for _, c := range root.Commands() {
			if c.Name() != "help" { // cobra's own
				names = append(names, c.Name())
			}
		}
		if want == "" && len(names) != all || want != "" && strings.Join(names, " ") != want {
			t.Errorf("koinon %s: %v were made, want %q alone", line, names, want)
		}
	}
}

// What is said of the command line itself is the same with one and with all.
func TestOneCommandOrAllSayTheSame(t *testing.T) {
	say := func(root *cobra.Command, args []string) string {
		var b strings.Builder
		root.SetArgs(args)
		root.SetOut(&b)
		root.SetErr(&b)
		if err := root.Execute(); err != nil {
			b.WriteString(err.Error())
		}
		return b.String()
	}
	for _, line := range []string{"run --help", "kv --help", "kv nothing", "ps --unknown", "cp", "node --help", "dev up --nodes"} {
		args := strings.Fields(line)
		one, whole := say(newRootCommandFor(&app{}, args), args), say(newRootCommand(&app{}), args)
		if one != whole {
			t.Errorf("koinon %s:\n%s\nwith all:\n%s", line, one, whole)
		}
	}
}

// Numbers of flags are decimal.
func TestDecimalFlags(t *testing.T) {
	for given, want := range map[string]string{"010": "10", "000": "0", "18446744073709551615": "18446744073709551615", "0x10": "", "1_0": "", "+1": "", "-1": "", "": "", "18446744073709551616": ""} {
		cmd, _, err := newRootCommandFor(&app{}, []string{"kv"}).Find([]string{"kv", "get"})
		if err != nil {
			t.Fatal(err)
		}
		flags := cmd.Flags()
		if err := flags.Set("rev", given); (err == nil) != (want != "") {
			t.Errorf("--rev %s: %v", given, err)
		} else if err != nil && !strings.Contains(flagError(err).Error(), `--rev is "`+given+`": give a number`) {
			t.Errorf("--rev %s: %v", given, flagError(err))
		} else if got := flags.Lookup("rev").Value.String(); err == nil && got != want {
			t.Errorf("--rev %s is %s, expected %s", given, got, want)
		}
	}
}

// What is wrong with a command line is told without the passwords in it.
func TestComplaintsHidePasswords(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for _, line := range []string{
		"dev up mysql://user:pa55@h/db", "dev up mysql:/user:pa55@h/db", "mysql://user:pa55@h/db", "dev up --nodes mysql://user:pa55@h/db",
		"dev up --dir DIR --meta user:pa55@tcp(127.0.0.1:1)/db", "dev up --dir DIR --meta mysql:/user:pa55@h/db",
		"dev up --dir DIR --blocks :pa55@127.0.0.1:1/0", "dev up --dir DIR --blocks redis://pa55@127.0.0.1:1/0",
	} {
		args := strings.Fields(strings.ReplaceAll(line, "DIR", t.TempDir()))
		var out, told strings.Builder
		if code := run(t.Context(), args, strings.NewReader(""), &out, &told); code == 0 {
			t.Errorf("koinon %s: it is accepted", line)
		}
		if said := out.String() + told.String(); strings.Contains(said, "pa55") || !strings.Contains(said, "***@") {
			t.Errorf("koinon %s: expected the URL without its password, found\n%s", line, said)
		}
	}
}
