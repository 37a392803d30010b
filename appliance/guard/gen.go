package guard

// The objects are committed, so that building clawbox needs no C compiler.
// clang 14 and llvm-strip regenerate them byte for byte.

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package guard -target amd64,arm64 -cflags "-Wall -Werror -Wno-unused-const-variable" -type head -type scope -type allowed -type shape witness bpf/witness.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package guard -target bpfel -cflags "-Wall -Werror" steer bpf/steer.c
