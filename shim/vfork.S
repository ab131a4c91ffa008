/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vfork(): the child runs in the caller's frame, on the caller's stack, and so
 * would spoil what a C function has there. As in libc, the return address is
 * kept in a register, which each of the two processes has to itself.
 */
#include <sys/syscall.h>

	.text
	.globl vfork, __vfork
	.type vfork, @function
	.set __vfork, vfork
	.hidden et_vfork_begin, et_vfork_child, et_vfork_parent
vfork:
	.cfi_startproc
	endbr64
	subq $8, %rsp
	.cfi_adjust_cfa_offset 8
	call et_vfork_begin
	addq $8, %rsp
	.cfi_adjust_cfa_offset -8
	popq %rdx
	.cfi_adjust_cfa_offset -8
	.cfi_register %rip, %rdx
	movl $SYS_vfork, %eax
	syscall
	pushq %rdx
	.cfi_adjust_cfa_offset 8
	testl %eax, %eax
	jz et_vfork_child
	movslq %eax, %rdi
	jmp et_vfork_parent
	.cfi_endproc
	.size vfork, . - vfork

	.section .note.GNU-stack, "", @progbits
