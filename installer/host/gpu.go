package host

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// pci reads one attribute of a device in sysfs.
func pci(dir, attr string) string {
	b, _ := os.ReadFile(filepath.Join(dir, attr))
	return strings.TrimSpace(string(b))
}

// nvswitches counts NVIDIA's bridges of class "other" (0x0680), which is how
// NVSwitch shows; the fabric manager leaves a pid file while it runs.
func (g *gatherer) nvswitches() error {
	dirs, err := filepath.Glob(filepath.Join(g.sys, "/sys/bus/pci/devices/*"))
	for _, d := range dirs {
		if pci(d, "vendor") == "0x10de" && strings.HasPrefix(pci(d, "class"), "0x0680") {
			g.f.NVLink.Switches++
		}
	}
	if err == nil {
		g.f.NVLink.Manager, err = g.exists("/run/nvidia-fabricmanager/nv-fabricmanager.pid")
	}
	return err
}

// reading is what NVML says of one GPU; address is NVML's, whose domain has 8
// digits.
type reading struct {
	address, model string
	memory, errors int64
	mig, ecc       bool
}

// nvml fills in what only the driver knows. Without GPUs or without a driver
// there is nothing to ask, and that is no failure: other facts say so.
func (g *gatherer) nvml() error {
	if err := g.nvswitches(); err != nil {
		return err
	}
	if len(g.f.GPUs) == 0 || g.f.NVIDIA == "" {
		return nil
	}
	ask := nvmlReadings
	if g.sys != "/" || ask == nil { // a made-up system has no library to load
		ask = g.smi
	}
	rs, err := ask()
	if err != nil {
		return err
	}
	for _, r := range rs {
		for i := range g.f.GPUs {
			u := &g.f.GPUs[i]
			if samePCI(u.Address, r.address) {
				u.Model, u.Memory, u.MIG, u.ECC, u.Errors = r.model, r.memory, r.mig, r.ecc, r.errors
			}
		}
	}
	return nil
}

// samePCI compares "0000:01:00.0" of sysfs with "00000000:01:00.0" of NVML.
func samePCI(a, b string) bool {
	trim := func(s string) string { return strings.TrimLeft(strings.ToLower(s), "0") }
	return trim(a) == trim(b)
}

// smiFields are asked in this order; units are left out, memory is in MiB.
const smiFields = "pci.bus_id,name,memory.total,mig.mode.current,ecc.mode.current,ecc.errors.uncorrected.volatile.total"

// smi asks nvidia-smi, by its full path and without a shell.
func (g *gatherer) smi() ([]reading, error) {
	for _, d := range toolDirs {
		p := filepath.Join(g.sys, d, "nvidia-smi")
		if _, err := os.Stat(p); err != nil {
			continue
		}
		// A GPU that has fallen off the bus can hold the driver for ever.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, p, "--query-gpu="+smiFields, "--format=csv,noheader,nounits")
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("nvidia-smi: %w: %.200s", err, out)
		}
		return parseSMI(string(out))
	}
	return nil, errors.New("no nvidia-smi to ask the driver with")
}

// parseSMI reads nvidia-smi's lines. A field that a GPU does not have says
// "[N/A]" or "[Not Supported]".
func parseSMI(s string) ([]reading, error) {
	c := csv.NewReader(strings.NewReader(s))
	c.TrimLeadingSpace = true
	c.FieldsPerRecord = strings.Count(smiFields, ",") + 1
	rows, err := c.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("nvidia-smi: %w", err)
	}
	var out []reading
	for _, r := range rows {
		mib, err := strconv.ParseInt(r[2], 10, 64)
		if err != nil && !strings.HasPrefix(r[2], "[") {
			return nil, fmt.Errorf("nvidia-smi: got memory %q; wanted MiB", r[2])
		}
		bad, _ := strconv.ParseInt(r[5], 10, 64)
		out = append(out, reading{address: r[0], model: r[1], memory: mib << 20, mig: r[3] == "Enabled", ecc: r[4] == "Enabled", errors: bad})
	}
	return out, nil
}
