package sbom

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/bundle/deb"
)

// dpkg reads dpkg's status file (deb-control(5)); distroless images have one file
// per package, without a status.
func dpkg(r io.Reader, f *file) error {
	return deb.Stanzas(r, func(s deb.Stanza) error {
		if st := s["status"]; st != "" && !strings.HasSuffix(st, " installed") {
			return nil
		}
		p := Package{Type: "deb", Name: s["package"], Version: s["version"], Arch: s["architecture"]}
		p.Source, _, _ = strings.Cut(s["source"], " ")
		return f.add(p)
	})
}

// add refuses what is no package.
func (f *file) add(p Package) error {
	if p.Name == "" || p.Version == "" || len(p.Name)+len(p.Version) > 1024 {
		return fmt.Errorf("a package with the name %.40q and the version %.40q", p.Name, p.Version)
	}
	if f.packages = append(f.packages, p); len(f.packages) > maxPackages {
		return fmt.Errorf("more than %d packages", maxPackages)
	}
	return nil
}

// apk reads Alpine's database: paragraphs of one-letter fields (apk-v2 installed
// format).
func apk(r io.Reader, f *file) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), 1<<20)
	var p Package
	end := func() error {
		was := p
		p = Package{Type: "apk"}
		if was.Name == "" {
			return nil
		}
		return f.add(was)
	}
	p.Type = "apk"
	for in.Scan() {
		k, v, _ := strings.Cut(in.Text(), ":")
		switch k {
		case "":
			if err := end(); err != nil {
				return err
			}
		case "P":
			p.Name = v
		case "V":
			p.Version = v
		case "A":
			p.Arch = v
		case "L":
			p.Licence = v
		case "o":
			p.Source = v
		}
	}
	if err := in.Err(); err != nil {
		return err
	}
	return end()
}

// osRelease reads os-release(5).
func osRelease(r io.Reader, f *file) error {
	b, err := all(r)
	if err != nil {
		return err
	}
	f.os = &OS{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		v = strings.Trim(v, `"'`)
		switch {
		case len(v) > 128:
		case k == "ID":
			f.os.ID = v
		case k == "VERSION_ID":
			f.os.Version = v
		case k == "PRETTY_NAME":
			f.os.Name = v
		}
	}
	return nil
}

// npm reads one package.json. Those without a name or version are parts of a
// package, not packages.
func npm(r io.Reader, f *file) error {
	b, err := all(r)
	if err != nil {
		return err
	}
	var p struct {
		Name, Version string
		License       json.RawMessage
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	if p.Name == "" || p.Version == "" {
		return nil
	}
	return f.add(Package{Type: "npm", Name: p.Name, Version: p.Version, Licence: npmLicence(p.License)})
}

// npmLicence reads "MIT" and the old {"type": "MIT"}.
func npmLicence(raw json.RawMessage) string {
	var s string
	var o struct{ Type string }
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	if json.Unmarshal(raw, &o) == nil {
		return o.Type
	}
	return ""
}

// npmLock reads package-lock.json of versions 2 and 3; version 1 names no folders.
func npmLock(r io.Reader, f *file) error {
	b, err := all(r)
	if err != nil {
		return err
	}
	var lock struct {
		LockfileVersion int
		Packages        map[string]struct {
			Name, Version string
			License       json.RawMessage
			Dev, Link     bool
		}
	}
	if err := json.Unmarshal(b, &lock); err != nil {
		return err
	}
	if lock.LockfileVersion < 2 {
		return fmt.Errorf("a lock of version %d, want 2 or 3", lock.LockfileVersion)
	}
	for _, at := range slices.Sorted(maps.Keys(lock.Packages)) {
		p := lock.Packages[at]
		i := strings.LastIndex(at, "node_modules/")
		if i < 0 || p.Dev || p.Link || p.Version == "" {
			continue
		}
		name := at[i+len("node_modules/"):]
		if p.Name != "" {
			name = p.Name // an alias
		}
		if err := f.add(Package{Type: "npm", Name: name, Version: p.Version, Licence: npmLicence(p.License)}); err != nil {
			return err
		}
	}
	return nil
}

// python reads the head of a metadata file (Python core metadata, PEP 566, 639).
func python(r io.Reader, f *file) error {
	in := bufio.NewScanner(io.LimitReader(r, maxFile))
	in.Buffer(make([]byte, 64<<10), 1<<20)
	p := Package{Type: "pypi"}
	for in.Scan() && in.Text() != "" {
		k, v, _ := strings.Cut(in.Text(), ": ")
		switch k {
		case "Name":
			p.Name = v
		case "Version":
			p.Version = v
		case "License-Expression":
			p.Licence = v
		case "License":
			if p.Licence == "" && len(v) < 100 {
				p.Licence = v
			}
		}
	}
	if err := in.Err(); err != nil {
		return err
	}
	if p.Name == "" {
		return errors.New("no name in Python's metadata")
	}
	return f.add(p)
}
