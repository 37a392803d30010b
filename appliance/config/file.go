package config

import (
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v4"
)

// File is where the configuration lies below an installation prefix.
func File(prefix string) string { return filepath.Join(prefix, "/etc/clawbox/appliance.yaml") }

// Load reads and validates the configuration at path. It is the only way from
// bytes to a Config that the services trust.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("config: %w; run `clawbox install` first, or name the file with --config", err)
	}
	return Parse(path, b)
}

// Parse is Load for bytes already in memory; name appears in messages.
func Parse(name string, src []byte) (Config, error) {
	var c Config
	if err := Strict(name, src, &c); err != nil {
		return Config{}, err
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

const head = `# The appliance's configuration, written by clawbox install.
# Edit it as root and restart the clawbox service. It holds no secret.
`

// Encode renders c so that Parse gives c back. It refuses an invalid c.
func (c Config) Encode() ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	b, err := yaml.Dump(c, yaml.WithV4Defaults())
	if err != nil {
		return nil, fmt.Errorf("config: encode: %w", err)
	}
	return append([]byte(head), b...), nil
}

// Default is the configuration of an appliance under prefix ("/" on an
// ordinary host) with nothing installed in it yet: no release, no slot, no
// agents. The installer fills those in.
func Default(prefix string) Config {
	at := func(p string) string { return filepath.Join("/", prefix, p) }
	state := at("var/lib/clawbox")
	in := func(p string) string { return filepath.Join(state, p) }
	return Config{
		APIVersion: APIVersion,
		Kind:       Kind,
		Paths: Paths{
			Store: in("store"), State: state, Ledger: in("ledger"), Run: at("run/clawbox"),
			Keys: in("keys"), Receipts: in("receipts"),
		},
		Registry:    "127.0.0.1:5000",
		HoldSeconds: 120,
		UIDBase:     DefaultUIDBase,
		AcceptTier:  "T3",
	}
}
