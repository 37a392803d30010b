/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Tier T2: the same questions, asked where the kernel calls its hooks. */
#define HOOK(name, function) SEC("fmod_ret/security_" #function)
#include "hooks.h"
