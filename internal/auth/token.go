package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

// The sizes of a token's parts, in bytes.
const (
	tokenIDSize     = 5
	tokenSecretSize = 16 // 128 bits, so that a plain hash of it tells nothing
	fingerprintSize = 16

	tokenPrefix = "koinon1"
	tokenParts  = 6 // of a token, which dots separate; the cluster may hold more of them
)

// base32Lower is what people can type: one case, no digit that is like a letter.
var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Fingerprint names a certificate: the first half of the SHA-256 of its DER
// form. Nobody can make another certificate with a given one.
type Fingerprint [fingerprintSize]byte

func fingerprint(der []byte) Fingerprint {
	sum := sha256.Sum256(der)
	return Fingerprint(sum[:fingerprintSize])
}

// Token lets one machine join a cluster, once. It is a secret. It also names
// the CA, so that who holds it knows whom to trust. Immutable.
type Token struct {
	Cluster string
	ID      string // its public part: 8 letters and digits
	Secret  [tokenSecretSize]byte
	CA      Fingerprint
}

// NewToken makes a token for the cluster that the credentials belong to.
func NewToken(c *Credentials) (Token, error) {
	t := Token{Cluster: c.id.Cluster, CA: fingerprint(c.ca.Raw)}
	var id [tokenIDSize]byte
	if _, err := rand.Read(id[:]); err != nil {
		return t, err
	}
	t.ID = base32Lower.EncodeToString(id[:])
	_, err := rand.Read(t.Secret[:])
	return t, err
}

// SecretHash is what the cluster keeps of a token's secret: its SHA-256.
func SecretHash(secret []byte) []byte {
	sum := sha256.Sum256(secret)
	return sum[:]
}

// Encode writes the token as people pass it on; docs/formats/join.md has the
// format. The last part is a checksum of the others.
func (t Token) Encode() string {
	body := strings.Join([]string{tokenPrefix, t.Cluster, t.ID,
		base32Lower.EncodeToString(t.Secret[:]), base32Lower.EncodeToString(t.CA[:])}, ".")
	return body + "." + tokenSum(body)
}

// String hides the secret, so that a token does not get into a log by mistake.
func (t Token) String() string { return "token " + t.ID + " of cluster " + t.Cluster }

func tokenSum(body string) string {
	sum := crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli))
	return base32Lower.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// ParseToken reads what Encode wrote; white space around it and the case of
// all but the cluster do not matter. The error is sys.Invalid and tells a slip
// of the pen from something that is no token. It never holds the secret.
func ParseToken(s string) (Token, error) {
	t, err := parseToken(strings.TrimSpace(s))
	if err != nil {
		return Token{}, sys.E(sys.Op("auth.ParseToken"), sys.Invalid, err)
	}
	return t, nil
}

func parseToken(s string) (t Token, err error) {
	parts := strings.Split(s, ".")
	if len(parts) < tokenParts || !strings.EqualFold(parts[0], tokenPrefix) {
		if head, _, _ := strings.Cut(s, "."); strings.HasPrefix(head, "koinon") && !strings.EqualFold(head, tokenPrefix) && len(head) < 12 {
			return t, fmt.Errorf("this is a token of format %q and this program knows %q: use the version of koinon that made it", head, tokenPrefix)
		}
		return t, errors.New("this is no join token: it looks like koinon1.CLUSTER.ID.SECRET.CA.SUM and `koinon node token` makes one; was it copied whole?")
	}
	tail := parts[len(parts)-4:]
	for i := range tail {
		tail[i] = strings.ToLower(tail[i])
	}
	t.Cluster = strings.Join(parts[1:len(parts)-4], ".")
	t.ID = tail[0]
	body := strings.Join([]string{tokenPrefix, t.Cluster, tail[0], tail[1], tail[2]}, ".")
	if tokenSum(body) != tail[3] {
		return t, errors.New("the join token's checksum is wrong, so a character of it was lost or changed: copy it again")
	}
	// What follows cannot go wrong by a slip, but anybody can make a checksum.
	if err := checkName("cluster ID", t.Cluster); err != nil {
		return t, err
	}
	if !decodePart(tail[0], make([]byte, tokenIDSize)) || !decodePart(tail[1], t.Secret[:]) || !decodePart(tail[2], t.CA[:]) {
		return t, errors.New("the join token's parts have the wrong size: make a new one with `koinon node token`")
	}
	return t, nil
}

// decodePart fills dst, and reports whether s has exactly that.
func decodePart(s string, dst []byte) bool {
	b, err := base32Lower.DecodeString(s)
	return err == nil && copy(dst, b) == len(dst) && len(b) == len(dst)
}
