//go:build !cgo || !nvml

package host

// nvmlReadings is nil without the build tag nvml: go-nvml loads the driver's
// library with dlopen, which a static program cannot, and a program that a linker
// binds at once does not even start where the driver is missing. So nvidia-smi is
// asked instead.
var nvmlReadings func() ([]reading, error)
