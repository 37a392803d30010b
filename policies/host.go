package policies

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Lengths of RFC 1035 section 2.3.4, counted without the final dot.
const (
	maxName  = 253
	maxLabel = 63
)

// profile maps and validates names as UTS #46 says, non-transitionally, as
// browsers do. ASCII characters are checked by checkLabel, which admits the
// underscore and the double hyphen that real names contain.
var profile = idna.New(
	idna.MapForLookup(), idna.Transitional(false), idna.BidiRule(),
	idna.StrictDomainName(false), idna.CheckHyphens(false),
)

// NormalizeHost gives the one spelling under which a host is compared: lower
// case, no final dot, international names in their xn-- form, IP literals as
// netip prints them (IPv4 in IPv6 becomes IPv4, brackets go). It refuses what
// two readers could take for different hosts: empty or over-long labels,
// control bytes, zones, and names that end in a number, which some resolvers
// read as an address ("127.1", "0x7f000001").
func NormalizeHost(host string) (string, error) {
	if len(host) > 4*maxName {
		return "", fmt.Errorf("got a host of %d bytes, want at most %d", len(host), maxName)
	}
	if !utf8.ValidString(host) {
		return "", fmt.Errorf("got host %q, want UTF-8 text", host)
	}
	if s, ok, err := literal(host); ok || err != nil {
		return s, err
	}
	name, err := strings.TrimSuffix(host, "."), error(nil)
	if !plainName(name) {
		name, err = ascii(name)
	}
	if err == nil {
		err = checkName(name)
	}
	if err != nil {
		return "", fmt.Errorf("got host %q, want a host name or an IP address: %w", host, err)
	}
	return name, nil
}

// plainName says whether a name is in its final spelling already, as nearly
// all are: the mapping would give it back unchanged.
func plainName(name string) bool {
	for i := range len(name) {
		if !hostByte(name[i]) && name[i] != '.' {
			return false
		}
	}
	return !strings.Contains(name, "xn--")
}

// ascii gives a name's xn-- form. It converts twice: right-to-left letters can
// map to a form that the same profile then refuses, and a form that is not
// stable would be one host when written and another when asked for.
func ascii(name string) (string, error) {
	once, err := profile.ToASCII(name)
	if err != nil {
		return "", err
	}
	twice, err := profile.ToASCII(once)
	if err == nil && twice != once {
		err = fmt.Errorf("its form %s is not stable", once)
	}
	return twice, err
}

// literal reads an IP address, IPv6 with or without brackets.
func literal(host string) (string, bool, error) {
	in, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		var closed bool
		if in, closed = strings.CutSuffix(in, "]"); !closed || !strings.Contains(in, ":") {
			return "", false, fmt.Errorf("got host %q, want an IPv6 address between the brackets", host)
		}
	}
	a, err := netip.ParseAddr(in)
	switch {
	case err == nil && a.Zone() != "":
		return "", false, fmt.Errorf("got host %q, want an address without a zone: a zone means something on one machine only", host)
	case err == nil:
		return a.Unmap().String(), true, nil
	case bracketed || strings.Contains(in, ":"):
		return "", false, fmt.Errorf("got host %q, want a host name or an IP address", host)
	}
	return "", false, nil
}

func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%d bytes long, the limit is %d", len(name), maxName)
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if err := checkLabel(l); err != nil {
			return err
		}
	}
	if numeric(labels[len(labels)-1]) {
		return errors.New("it ends in a number, which some resolvers read as an address")
	}
	return nil
}

func checkLabel(l string) error {
	switch {
	case l == "":
		return errors.New("a label is empty")
	case len(l) > maxLabel:
		return fmt.Errorf("a label is %d bytes long, the limit is %d", len(l), maxLabel)
	case l[0] == '-' || l[len(l)-1] == '-':
		return fmt.Errorf("label %q begins or ends with a hyphen", l)
	}
	for i := range len(l) {
		if !hostByte(l[i]) {
			return fmt.Errorf("character %q", l[i])
		}
	}
	return nil
}

func hostByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// numeric says whether inet_aton would take a last label for a number (the
// "ends in a number" rule of the WHATWG URL standard, section 3.5).
func numeric(l string) bool {
	digits := "0123456789"
	if rest, hex := strings.CutPrefix(l, "0x"); hex {
		l, digits = rest, "0123456789abcdef"
	}
	return strings.Trim(l, digits) == ""
}

// isAddr says whether a normalized host is an IP literal.
func isAddr(host string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(host)
	return a, err == nil
}
