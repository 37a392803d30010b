package guard

// The objects are committed, so that building clawbox needs no C compiler.
// clang 14 and its llvm-strip regenerate them byte for byte; another version would not.

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -go-package guard -target amd64,arm64 -cflags "-Wall -Werror -Wno-unused-const-variable" -type head -type scope -type slot -type allowed -type shape -type shared -type peer -type prefix -type label -type ends -type caller -type file_id -type address witness bpf/witness.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -go-package guard -target bpfel -cflags "-Wall -Werror" steer bpf/steer.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -go-package guard -target bpfel -cflags "-Wall -Werror -Wno-unused-const-variable" -no-global-types lsm bpf/lsm.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -go-package guard -target bpfel -cflags "-Wall -Werror -Wno-unused-const-variable" -no-global-types modify bpf/modify.c
