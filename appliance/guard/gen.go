package guard

// The objects are committed, so that building clawbox needs no C compiler.
// clang 14 and its llvm-strip regenerate them byte for byte; another version would not.

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -go-package guard -target amd64,arm64 -cflags "-Wall -Werror -Wno-unused-const-variable" -type head -type scope -type allowed -type shape witness bpf/witness.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -go-package guard -target bpfel -cflags "-Wall -Werror" steer bpf/steer.c
