/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Tier T1: the kernel's own security hooks, where bpf is in the lsm= list. */
#define HOOK(name, function) SEC("lsm/" #function)
#include "hooks.h"
