package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// ofStick are the modules that a Debian host loads when a USB stick is plugged
// in. The guest has none on its disk, so they are loaded ahead.
var ofStick = []string{"xhci_pci", "usb_storage", "sd_mod", "vfat", "nls_cp437", "nls_iso8859-1", "nls_ascii", "exfat"}

// Plug puts a USB stick into the machine, a file with a file system that the
// guest can't write to. The guest sees it some seconds later.
func (m *Machine) Plug(name, image string) error {
	err := m.monitor("blockdev-add", map[string]any{"node-name": name, "driver": "raw", "read-only": true, "file": map[string]any{"driver": "file", "filename": image}})
	if err != nil {
		return err
	}
	return m.monitor("device_add", map[string]any{"driver": "usb-storage", "bus": "usb.0", "id": name, "drive": name, "removable": true, "serial": name})
}

// Unplug takes it out again.
func (m *Machine) Unplug(name string) error {
	if err := m.monitor("device_del", map[string]any{"id": name}); err != nil {
		return err
	}
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = m.monitor("blockdev-del", map[string]any{"node-name": name}); err == nil {
			return nil // as long as the guest holds on to the device, its medium is in use
		}
	}
	return err
}

// monitor speaks QMP, QEMU's own protocol: one JSON object a line
// (docs/interop/qmp-spec.rst of QEMU). It begins with the first use.
type monitor struct {
	conn net.Conn
	in   *bufio.Reader
}

func (m *Machine) monitor(command string, arguments any) error {
	if m.qmp == nil {
		conn, err := net.Dial("unix", m.path("qmp"))
		if err != nil {
			return err
		}
		m.qmp = &monitor{conn, bufio.NewReader(conn)}
		if err := m.qmp.do("qmp_capabilities", struct{}{}); err != nil {
			return err
		}
	}
	return m.qmp.do(command, arguments)
}

// do sends a command and waits for its answer; events in between are not ours.
func (q *monitor) do(command string, arguments any) error {
	if err := q.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	b, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		return err
	}
	if _, err := q.conn.Write(append(b, '\n')); err != nil {
		return err
	}
	for {
		line, err := q.in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("QEMU, asked to %s: %w", command, err)
		}
		var a struct {
			Return *json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(line, &a); err != nil {
			return fmt.Errorf("QEMU said %q: %w", line, err)
		}
		switch {
		case a.Error != nil:
			return fmt.Errorf("QEMU, asked to %s: %s", command, a.Error.Desc)
		case a.Return != nil:
			return nil
		}
	}
}
