//go:build cgo && nvml

package host

import (
	"errors"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// nvmlReadings asks NVML by its own library, which go-nvml loads at run time.
var nvmlReadings = func() (out []reading, err error) {
	if r := nvml.Init(); r != nvml.SUCCESS {
		return nil, fmt.Errorf("nvml: %s", nvml.ErrorString(r))
	}
	defer func() { // what was read stays true
		if r := nvml.Shutdown(); r != nvml.SUCCESS {
			err = errors.Join(err, fmt.Errorf("nvml: shutdown: %s", nvml.ErrorString(r)))
		}
	}()
	n, r := nvml.DeviceGetCount()
	if r != nvml.SUCCESS {
		return nil, fmt.Errorf("nvml: count: %s", nvml.ErrorString(r))
	}
	for i := range n {
		one, err := readDevice(i)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// readDevice asks for what every GPU has, and then for what some lack: MIG and
// error correction stay off where the answer is "not supported".
func readDevice(i int) (reading, error) {
	d, r := nvml.DeviceGetHandleByIndex(i)
	if r != nvml.SUCCESS {
		return reading{}, fmt.Errorf("nvml: GPU %d: %s", i, nvml.ErrorString(r))
	}
	p, r1 := d.GetPciInfo()
	name, r2 := d.GetName()
	mem, r3 := d.GetMemoryInfo()
	for _, r := range []nvml.Return{r1, r2, r3} {
		if r != nvml.SUCCESS {
			return reading{}, fmt.Errorf("nvml: GPU %d: %s", i, nvml.ErrorString(r))
		}
	}
	out := reading{model: name, memory: int64(mem.Total)}
	for _, c := range p.BusId {
		if c == 0 {
			break
		}
		out.address += string(rune(byte(c)))
	}
	if mode, _, r := d.GetMigMode(); r == nvml.SUCCESS {
		out.mig = mode == nvml.DEVICE_MIG_ENABLE
	}
	if now, _, r := d.GetEccMode(); r == nvml.SUCCESS {
		out.ecc = now == nvml.FEATURE_ENABLED
	}
	if n, r := d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); r == nvml.SUCCESS {
		out.errors = int64(n)
	}
	return out, nil
}
