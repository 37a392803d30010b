// Package settings is the file that clawbox-runc finds beside itself, which the
// installer writes: <program>.json.
//
//	b, err := settings.Settings{Socket: "/run/clawbox/gate.sock", Runc: "/usr/bin/runc", Namespace: "clawbox-agents"}.Encode()
//	s, err := settings.Of("/opt/clawbox/runtime/clawbox-runc")
//
// It stands apart from package gate, which needs more than an installer may, and
// from appliance/config, whose YAML every start of a container would pay for.
package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Socket is the name of the supervisor's socket in the appliance's folder of
// sockets.
const Socket = "gate.sock"

// Settings are what the runtime has to know.
type Settings struct {
	Socket    string `json:"socket"`    // the supervisor's
	Runc      string `json:"runc"`      // what it becomes
	Namespace string `json:"namespace"` // the agents'
}

// File is where the settings of the runtime at program stand.
func File(program string) string { return program + ".json" }

// Of reads the settings of the runtime at program.
func Of(program string) (s Settings, err error) {
	b, err := os.ReadFile(File(program))
	if err != nil {
		return s, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, fmt.Errorf("%s: %w", File(program), err)
	}
	if _, err := d.Token(); err != io.EOF {
		return s, fmt.Errorf("%s: data after the settings", File(program))
	}
	if err := s.check(); err != nil {
		return s, fmt.Errorf("%s: %w", File(program), err)
	}
	return s, nil
}

// Encode makes the file's text, which Of reads back.
func (s Settings) Encode() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(s, "", "  ")
	return append(b, '\n'), err
}

func (s Settings) check() error {
	for _, p := range [][2]string{{"socket", s.Socket}, {"runc", s.Runc}} {
		if !filepath.IsAbs(p[1]) {
			return fmt.Errorf("%s is %q; want an absolute path", p[0], p[1])
		}
	}
	if s.Namespace == "" {
		return errors.New("got no namespace of the agents; want its name")
	}
	return nil
}
