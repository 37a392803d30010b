//go:build !purego

#include "textflag.h"

// Both lanes' rounds are written one after the other, four at a time; the
// processor, which looks several hundred instructions ahead, runs them side by
// side. How the instructions want their operands is from Intel's manual,
// volume 2, SHA256RNDS2, SHA256MSG1 and SHA256MSG2: a state lies in two
// registers as (A, B, E, F) and (C, D, G, H), and X0 has words + constants.
//
// Lane one: X1 ABEF, X2 CDGH, X3 to X6 the last sixteen words.
// Lane two: X7 ABEF, X8 CDGH, X9 to X12 the last sixteen words.
// X13 reverses the bytes of words, X14 and X15 are scratch.
// SI and DI are the data, CX the blocks to go, AX the constants. The states
// from which the block began lie in the frame.

// FOUR does four rounds, whose words are in w, and leaves the state in ab and cd.
#define FOUR(i, w, ab, cd) \
	MOVO        w, X0         \
	PADDD       (16*i)(AX), X0 \
	SHA256RNDS2 X0, ab, cd    \
	PSHUFD      $0x0e, X0, X0 \
	SHA256RNDS2 X0, cd, ab

// LOAD loads the words of rounds 4i to 4i+3.
#define LOAD(i, from, w) \
	MOVOU  (16*i)(from), w \
	PSHUFB X13, w

// BEGIN are rounds 4i to 4i+3 of both lanes, whose words are loaded.
#define BEGIN(i, a, b) \
	LOAD(i, SI, a)     \
	LOAD(i, DI, b)     \
	FOUR(i, a, X1, X2) \
	FOUR(i, b, X7, X8)

// NEXT makes the next four words out of the last sixteen, w0 to w3, the oldest
// of which have been through SHA256MSG1, and puts them in the place of w0.
#define NEXT(w0, w1, w2, w3, t) \
	MOVO       w3, t      \
	PALIGNR    $4, w2, t  \
	PADDD      t, w0      \
	SHA256MSG2 w3, w0

// BOTH are rounds 4i to 4i+3 of both lanes, for which the next words are made.
#define BOTH(i, a0, a1, a2, a3, b0, b1, b2, b3) \
	SHA256MSG1 a1, a0             \
	SHA256MSG1 b1, b0             \
	FOUR(i, a3, X1, X2)           \
	FOUR(i, b3, X7, X8)           \
	NEXT(a0, a1, a2, a3, X14)     \
	NEXT(b0, b1, b2, b3, X15)

// TURN takes a state from memory into registers, UNTURN back.
#define TURN(from, ab, cd) \
	MOVOU   0(from), ab      \ // D C B A, the highest first
	MOVOU   16(from), cd     \ // H G F E
	PSHUFD  $0xb1, ab, X14   \ // C D A B
	PSHUFD  $0x1b, cd, cd    \ // E F G H
	MOVO    X14, ab          \
	PALIGNR $8, cd, ab       \ // A B E F
	PBLENDW $0xf0, X14, cd   // C D G H

#define UNTURN(to, ab, cd) \
	PSHUFD  $0x1b, ab, X14   \ // F E B A
	PSHUFD  $0xb1, cd, cd    \ // D C H G
	MOVO    X14, ab          \
	PBLENDW $0xf0, cd, ab    \ // D C B A
	PALIGNR $8, X14, cd      \ // H G F E
	MOVOU   ab, 0(to)        \
	MOVOU   cd, 16(to)

// func blocks(a, b *[8]uint32, p, q *byte, n int)
TEXT ·blocks(SB), NOSPLIT, $64-40
	MOVQ  a+0(FP), R8
	MOVQ  b+8(FP), R9
	MOVQ  p+16(FP), SI
	MOVQ  q+24(FP), DI
	MOVQ  n+32(FP), CX
	LEAQ  constants<>(SB), AX
	MOVOU reverse<>(SB), X13
	TURN(R8, X1, X2)
	TURN(R9, X7, X8)

block:
	MOVOU X1, 0(SP)
	MOVOU X2, 16(SP)
	MOVOU X7, 32(SP)
	MOVOU X8, 48(SP)

	BEGIN(0, X3, X9)
	BEGIN(1, X4, X10)
	BEGIN(2, X5, X11)
	LOAD(3, SI, X6)
	LOAD(3, DI, X12)
	BOTH(3, X3, X4, X5, X6, X9, X10, X11, X12)
	BOTH(4, X4, X5, X6, X3, X10, X11, X12, X9)
	BOTH(5, X5, X6, X3, X4, X11, X12, X9, X10)
	BOTH(6, X6, X3, X4, X5, X12, X9, X10, X11)
	BOTH(7, X3, X4, X5, X6, X9, X10, X11, X12)
	BOTH(8, X4, X5, X6, X3, X10, X11, X12, X9)
	BOTH(9, X5, X6, X3, X4, X11, X12, X9, X10)
	BOTH(10, X6, X3, X4, X5, X12, X9, X10, X11)
	BOTH(11, X3, X4, X5, X6, X9, X10, X11, X12)
	BOTH(12, X4, X5, X6, X3, X10, X11, X12, X9)
	BOTH(13, X5, X6, X3, X4, X11, X12, X9, X10)
	BOTH(14, X6, X3, X4, X5, X12, X9, X10, X11)
	FOUR(15, X6, X1, X2)
	FOUR(15, X12, X7, X8)

	MOVOU 0(SP), X14
	PADDD X14, X1
	MOVOU 16(SP), X14
	PADDD X14, X2
	MOVOU 32(SP), X15
	PADDD X15, X7
	MOVOU 48(SP), X15
	PADDD X15, X8

	ADDQ $64, SI
	ADDQ $64, DI
	DECQ CX
	JNZ  block

	UNTURN(R8, X1, X2)
	UNTURN(R9, X7, X8)
	RET

// The constants of FIPS 180-4, 4.2.2.
DATA constants<>+0x00(SB)/4, $0x428a2f98
DATA constants<>+0x04(SB)/4, $0x71374491
DATA constants<>+0x08(SB)/4, $0xb5c0fbcf
DATA constants<>+0x0c(SB)/4, $0xe9b5dba5
DATA constants<>+0x10(SB)/4, $0x3956c25b
DATA constants<>+0x14(SB)/4, $0x59f111f1
DATA constants<>+0x18(SB)/4, $0x923f82a4
DATA constants<>+0x1c(SB)/4, $0xab1c5ed5
DATA constants<>+0x20(SB)/4, $0xd807aa98
DATA constants<>+0x24(SB)/4, $0x12835b01
DATA constants<>+0x28(SB)/4, $0x243185be
DATA constants<>+0x2c(SB)/4, $0x550c7dc3
DATA constants<>+0x30(SB)/4, $0x72be5d74
DATA constants<>+0x34(SB)/4, $0x80deb1fe
DATA constants<>+0x38(SB)/4, $0x9bdc06a7
DATA constants<>+0x3c(SB)/4, $0xc19bf174
DATA constants<>+0x40(SB)/4, $0xe49b69c1
DATA constants<>+0x44(SB)/4, $0xefbe4786
DATA constants<>+0x48(SB)/4, $0x0fc19dc6
DATA constants<>+0x4c(SB)/4, $0x240ca1cc
DATA constants<>+0x50(SB)/4, $0x2de92c6f
DATA constants<>+0x54(SB)/4, $0x4a7484aa
DATA constants<>+0x58(SB)/4, $0x5cb0a9dc
DATA constants<>+0x5c(SB)/4, $0x76f988da
DATA constants<>+0x60(SB)/4, $0x983e5152
DATA constants<>+0x64(SB)/4, $0xa831c66d
DATA constants<>+0x68(SB)/4, $0xb00327c8
DATA constants<>+0x6c(SB)/4, $0xbf597fc7
DATA constants<>+0x70(SB)/4, $0xc6e00bf3
DATA constants<>+0x74(SB)/4, $0xd5a79147
DATA constants<>+0x78(SB)/4, $0x06ca6351
DATA constants<>+0x7c(SB)/4, $0x14292967
DATA constants<>+0x80(SB)/4, $0x27b70a85
DATA constants<>+0x84(SB)/4, $0x2e1b2138
DATA constants<>+0x88(SB)/4, $0x4d2c6dfc
DATA constants<>+0x8c(SB)/4, $0x53380d13
DATA constants<>+0x90(SB)/4, $0x650a7354
DATA constants<>+0x94(SB)/4, $0x766a0abb
DATA constants<>+0x98(SB)/4, $0x81c2c92e
DATA constants<>+0x9c(SB)/4, $0x92722c85
DATA constants<>+0xa0(SB)/4, $0xa2bfe8a1
DATA constants<>+0xa4(SB)/4, $0xa81a664b
DATA constants<>+0xa8(SB)/4, $0xc24b8b70
DATA constants<>+0xac(SB)/4, $0xc76c51a3
DATA constants<>+0xb0(SB)/4, $0xd192e819
DATA constants<>+0xb4(SB)/4, $0xd6990624
DATA constants<>+0xb8(SB)/4, $0xf40e3585
DATA constants<>+0xbc(SB)/4, $0x106aa070
DATA constants<>+0xc0(SB)/4, $0x19a4c116
DATA constants<>+0xc4(SB)/4, $0x1e376c08
DATA constants<>+0xc8(SB)/4, $0x2748774c
DATA constants<>+0xcc(SB)/4, $0x34b0bcb5
DATA constants<>+0xd0(SB)/4, $0x391c0cb3
DATA constants<>+0xd4(SB)/4, $0x4ed8aa4a
DATA constants<>+0xd8(SB)/4, $0x5b9cca4f
DATA constants<>+0xdc(SB)/4, $0x682e6ff3
DATA constants<>+0xe0(SB)/4, $0x748f82ee
DATA constants<>+0xe4(SB)/4, $0x78a5636f
DATA constants<>+0xe8(SB)/4, $0x84c87814
DATA constants<>+0xec(SB)/4, $0x8cc70208
DATA constants<>+0xf0(SB)/4, $0x90befffa
DATA constants<>+0xf4(SB)/4, $0xa4506ceb
DATA constants<>+0xf8(SB)/4, $0xbef9a3f7
DATA constants<>+0xfc(SB)/4, $0xc67178f2
GLOBL constants<>(SB), RODATA|NOPTR, $256

DATA reverse<>+0x00(SB)/8, $0x0405060700010203
DATA reverse<>+0x08(SB)/8, $0x0c0d0e0f08090a0b
GLOBL reverse<>(SB), RODATA|NOPTR, $16
