//go:build !cgo

package host

// nvmlReadings is nil without cgo: go-nvml loads the driver's library with
// dlopen, which a static program cannot, so nvidia-smi is asked instead.
var nvmlReadings func() ([]reading, error)
