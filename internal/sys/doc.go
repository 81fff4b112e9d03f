// Package sys is the vocabulary that every other package of Koinon shares:
// identifiers, file attributes, and errors that say what was being done to
// what. It imports nothing of ours and does nothing by itself.
package sys
