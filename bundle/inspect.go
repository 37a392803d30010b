package bundle

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// Info is what a bundle says about itself. Only when Verified is true has
// anybody whom the caller trusts said it.
type Info struct {
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	Sequence int64     `json:"sequence"`
	Created  time.Time `json:"created"`

	Verified   bool                 `json:"verified"`
	Trust      string               `json:"trust"`   // in words
	Signers    []string             `json:"signers"` // trusted keys that signed
	Signatures []manifest.Signature `json:"signatures"`
	Threshold  int                  `json:"threshold"` // signatures that the release asks for

	Base       *manifest.Base `json:"base,omitempty"`       // what hosts must have
	Encryption string         `json:"encryption,omitempty"` // as in the release
	Sealed     bool           `json:"sealed,omitempty"`     // Items could not be read
	Roots      int            `json:"roots,omitempty"`      // how long the chain of roots is

	Size   int64           `json:"size"` // payload, in bytes
	Parts  []PartInfo      `json:"parts"`
	Parity []PartInfo      `json:"parity,omitempty"`
	Items  []manifest.Item `json:"items"`
}

// Inspect reads release.note and index.json and looks for the parts; it reads
// no payload. With the zero Trust nothing is verified, and Info says so. With
// a trust, a bundle that it didn't sign is an error.
func Inspect(trust manifest.Trust, dirs ...string) (Info, error) {
	return MediaOptions{Trust: trust, Dirs: dirs}.Inspect()
}

// Inspect is Inspect for encrypted media, too: without an identity that fits,
// the items are left out and Sealed is set.
func (o MediaOptions) Inspect() (Info, error) {
	note, err := readNote(o.Dirs)
	if err != nil {
		return Info{}, err
	}
	r, sigs, err := manifest.Unverified(note)
	if err != nil {
		return Info{}, err
	}
	i := Info{Trust: "SIGNATURE NOT CHECKED: no key given (--key); anybody may have made this bundle"}
	if !o.Trust.Empty() {
		trust, err := o.Trust.Follow((&Media{dirs: o.Dirs}).readRoot)
		if err != nil {
			return Info{}, fmt.Errorf("media: %w", err)
		}
		if r, i.Signers, err = trust.Open(note); err != nil {
			return Info{}, err
		}
		i.Verified, i.Trust = true, "signed by "+strings.Join(i.Signers, ", ")
	}
	x, err := readIndex(r, o.Dirs, o.Identities...)
	switch {
	case errors.Is(err, manifest.ErrSealed) && len(o.Identities) == 0:
		i.Sealed = true
	case err != nil:
		return Info{}, err
	case r.Encryption != "":
		r.Items = x.Items
	}
	i.Name, i.Version, i.Sequence, i.Created, i.Base, i.Encryption = r.Name, r.Version, r.Sequence, r.Created, r.Base, r.Encryption
	i.Signatures, i.Threshold, i.Roots = sigs, r.Roles.Release.Threshold, len(r.Roots)
	i.Size, i.Parts, i.Items = r.Size(), findParts(r, o.Dirs), r.Items
	i.Parity = findParity(r, o.Dirs)
	return i, nil
}

// Print writes the info for people.
func (i Info) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "release\t%s %s (sequence %d), %s\n", i.Name, i.Version, i.Sequence, i.Created.Format(time.RFC3339))
	fmt.Fprintf(t, "trust\t%s\n", i.Trust)
	for _, s := range i.Signatures {
		fmt.Fprintf(t, "signature\t%s+%s\n", s.Name, s.Hash)
	}
	if i.Base != nil {
		fmt.Fprintf(t, "builds upon\t%s: hosts must have it\n", i.Base)
	}
	if i.Encryption != "" {
		fmt.Fprintf(t, "encrypted\t%s%s\n", i.Encryption, map[bool]string{true: ": name an identity (--identity) to see what is in it"}[i.Sealed])
	}
	fmt.Fprintf(t, "payload\t%s in %d parts, of which any %d may be lost\n\n", Size(i.Size), len(i.Parts), len(i.Parity))
	fmt.Fprintf(t, "ITEM\tKIND\tSIZE\tLICENCE\tMAY BE PASSED ON\tREF\tPLACE\n")
	for _, it := range i.Items {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", it.Name, it.Kind, Size(it.TotalSize), or(it.Licence, "not stated"),
			yesNo(it.Redistributable), it.Ref, or(it.Path, strings.Join(it.Platforms, ",")))
	}
	if notes := notesOn(i.Items); len(notes) > 0 {
		fmt.Fprintf(t, "\nNOTE\t\n%s", strings.Join(notes, ""))
	}
	fmt.Fprintf(t, "\nPART\tSIZE\tSTATE\n")
	for _, p := range append(append(partList{}, i.Parts...), i.Parity...) {
		fmt.Fprintf(t, "%s\t%s\t%s\n", p.Name, Size(p.Size), p.State())
	}
	return t.Flush()
}

// notesOn are the lines about items that somebody should read before they are
// used or handed on: who decided what, keys that were let through, code.
func notesOn(items []manifest.Item) (out []string) {
	for _, it := range items {
		say := func(format string, args ...any) {
			out = append(out, it.Name+"\t"+fmt.Sprintf(format, args...)+"\n")
		}
		for _, a := range it.Accepted {
			say("%s", acceptances[a.What](a.By, a.When, a.SHA256))
		}
		for _, k := range it.AllowedKeys {
			say("holds the key %s, which the recipe allows: %s", k.Fingerprint, k.Why)
		}
		if m := it.Model; m != nil {
			if m.Profile != "" {
				say("profile %s, chosen for %s", m.Profile, m.Target)
			}
			for _, c := range m.Code {
				say("code: %s  %s", c.Name, c.Digest)
			}
			for _, a := range m.Asks {
				say("asks the engine to run code: %s", a)
			}
		}
	}
	return out
}

// acceptances puts each kind of acceptance into words.
var acceptances = map[string]func(by, when, sum string) string{
	licence.OwnUse: func(by, when, _ string) string {
		return fmt.Sprintf("for hosts of the same organisation only, as %s decided, %s", by, when)
	},
	licence.EULA: func(by, when, sum string) string {
		return fmt.Sprintf("terms sha256:%s accepted by %s, %s", sum, by, when)
	},
}

// State is "present", "missing" or what is wrong with the size.
func (p PartInfo) State() string {
	switch {
	case p.Got < 0:
		return "MISSING"
	case p.Got != p.Size:
		return fmt.Sprintf("WRONG SIZE: got %d bytes, want %d", p.Got, p.Size)
	}
	return "present"
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
