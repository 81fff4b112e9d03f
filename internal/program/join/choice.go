package main

import (
	"debug/elf"
	"fmt"

	"github.com/koinon/koinon/internal/program"
)

// choose is the code that a joined file begins with. It asks the kernel for
// program.TimerSlack, which a thread has from the one that made it, so that this is the
// one moment at which all threads of a Go program can be given it (prctl(2)). Then it
// looks at the first variable of the environment, of which it compares as many bytes as two registers hold, and goes on at the
// entry of one of the programs with the stack as the kernel gave it: argc, argv, a null, the environment (System V ABI, initial process stack).
// Behind the last string of the environment there are more than eight bytes of the
// name of the file and of the end of the stack, so that eight may be read at once.
func choose(machine elf.Machine, client, node uint64) ([]byte, error) {
	first, second := le.Uint64([]byte(program.Node)[0:]), le.Uint64([]byte(program.Node)[8:])
	switch machine {
	case elf.EM_X86_64:
		return chooseAMD64(first, second, client, node), nil
	case elf.EM_AARCH64:
		return chooseARM64(first, second, client, node), nil
	}
	return nil, fmt.Errorf("files with two programs are made for x86-64 and arm64, not for %v", machine)
}

func chooseAMD64(first, second, client, node uint64) []byte {
	var code []byte
	var jumps []int // places of the distances to the end, from behind them
	emit := func(b ...byte) { code = append(code, b...) }
	number := func(v uint32) { code = le.AppendUint32(code, v) }
	jump := func(op byte) { emit(op, 0); jumps = append(jumps, len(code)) }
	load := func(v uint64) { emit(0x48, 0xb9); code = le.AppendUint64(code, v) } // mov rcx, v
	enter := func(v uint64) { load(v); emit(0xff, 0xe1) }                        // jmp rcx

	emit(0xb8, 0x9d, 0, 0, 0) // mov eax, 157 (prctl)
	emit(0xbf, 0x1e, 0, 0, 0) // mov edi, 30 (PR_GET_TIMERSLACK)
	emit(0x0f, 0x05)          // syscall
	emit(0x3d)                // cmp eax, DefaultSlack
	number(program.DefaultSlack)
	emit(0x75, 17)            // jne, over what follows
	emit(0xb8, 0x9d, 0, 0, 0) // mov eax, 157
	emit(0xbf, 0x1d, 0, 0, 0) // mov edi, 29 (PR_SET_TIMERSLACK)
	emit(0xbe)                // mov esi, TimerSlack
	number(program.TimerSlack)
	emit(0x0f, 0x05) // syscall

	emit(0x48, 0x8b, 0x04, 0x24)       // mov rax, [rsp]
	emit(0x48, 0x8b, 0x44, 0xc4, 0x10) // mov rax, [rsp+rax*8+16]
	emit(0x48, 0x85, 0xc0)             // test rax, rax
	jump(0x74)                         // je
	load(first)
	emit(0x48, 0x39, 0x08) // cmp [rax], rcx
	jump(0x75)             // jne
	load(second)
	emit(0x48, 0x39, 0x48, 0x08) // cmp [rax+8], rcx
	jump(0x75)
	enter(node)
	for _, at := range jumps {
		code[at-1] = byte(len(code) - at)
	}
	enter(client)
	return code
}

func chooseARM64(first, second, client, node uint64) []byte {
	const (
		words    = 26 // of the code; the literals follow
		toClient = 24 // the word where the client's entry is loaded
	)
	var code []byte
	at := func() uint32 { return uint32(len(code) / 4) }
	emit := func(w uint32) { code = le.AppendUint32(code, w) }
	jump := func(op uint32) { emit(op | (toClient-at())<<5) }
	load := func(literal uint32) { emit(0x58000003 | (words+2*literal-at())<<5) } // ldr x3, literal
	enter := func(literal uint32) { load(literal); emit(0xd61f0060) }             // br x3

	emit(0xd28014e8)                                // mov x8, 167 (prctl)
	emit(0xd28003c0)                                // mov x0, 30 (PR_GET_TIMERSLACK)
	emit(0xd4000001)                                // svc 0
	emit(0x52800003 | program.DefaultSlack<<5)      // mov w3, DefaultSlack
	emit(0xeb03001f)                                // cmp x0, x3
	emit(0x54000001 | 5<<5)                         // b.ne, over what follows
	emit(0xd28003a0)                                // mov x0, 29 (PR_SET_TIMERSLACK)
	emit(0xd2800001 | program.TimerSlack&0xffff<<5) // mov x1, the lower half of TimerSlack
	emit(0xf2a00001 | program.TimerSlack>>16<<5)    // movk x1, the upper half, lsl 16
	emit(0xd4000001)                                // svc 0

	emit(0xf94003e0) // ldr x0, [sp]
	emit(0x8b206fe0) // add x0, sp, x0, lsl 3
	emit(0xf9400800) // ldr x0, [x0, 16]
	jump(0xb4000000) // cbz x0
	emit(0xf9400001) // ldr x1, [x0]
	load(0)
	emit(0xeb03003f) // cmp x1, x3
	jump(0x54000001) // b.ne
	emit(0xf9400401) // ldr x1, [x0, 8]
	load(1)
	emit(0xeb03003f)
	jump(0x54000001)
	enter(2)
	enter(3)
	for _, literal := range []uint64{first, second, node, client} {
		code = le.AppendUint64(code, literal)
	}
	return code
}
