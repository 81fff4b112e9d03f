// Package engine names the engines from outside that Koinon can be put on:
// servers of Redis or MySQL that somebody else runs. It reads their URLs,
// finds the secrets in files and in the environment, and keeps them out of
// errors, logs and the list of processes.
//
// An engine is given as one of
//
//	scheme://[user[:password]@]host[:port][,host...][/path][?name=value&...]
//	@FILE        a file of mode 0600 that holds such a URL
//	env:NAME     an environment variable that does
//
// The parameters that every engine knows are about TLS: ca, cert and key name
// PEM files, server-name is the name in the server's certificate; and socket
// names a unix socket in place of a host.
package engine
