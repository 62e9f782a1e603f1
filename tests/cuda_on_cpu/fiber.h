// A fiber: a stack of its own and the point at which its code goes on. Switching costs about 20 ns on x86-64 with the
// assembly below, and several times that with ucontext, which serves every other processor.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#if !defined(__x86_64__) || defined(CUDA_ON_CPU_UCONTEXT)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

// Memory that ends in an inaccessible page below, so that an overflow is a crash and not a wrong result.
class Stack {
public:
    static constexpr size_t bytes = 256 << 10, guard = 64 << 10;

    Stack() {
        void *mapping = mmap(nullptr, guard + bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapping == MAP_FAILED) throw std::bad_alloc();
        bottom = static_cast<char *>(mapping) + guard;
        if (mprotect(bottom, bytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    }
    char *bottom;
};

#if defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)

// Pushes the callee-saved registers, leaves the stack pointer in *from, and goes on where `to` was left.
extern "C" void cuda_on_cpu_switch_stack(void **from, void *to);
asm(R"(
    .text
    .type cuda_on_cpu_switch_stack, @function
cuda_on_cpu_switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size cuda_on_cpu_switch_stack, . - cuda_on_cpu_switch_stack
)");

class Context {
public:
    void start_at(const Stack &stack, void (*entry)()) {
        constexpr int saved_registers = 6;
        void **top = reinterpret_cast<void **>(stack.bottom + Stack::bytes);
        *--top = nullptr;  // keeps the stack aligned as after a call
        *--top = reinterpret_cast<void *>(entry);
        for (int i = 0; i < saved_registers; i++) *--top = nullptr;
        stack_pointer = top;
    }
    void switch_to(Context &other) { cuda_on_cpu_switch_stack(&stack_pointer, other.stack_pointer); }

private:
    void *stack_pointer = nullptr;
};

#else

class Context {
public:
    void start_at(const Stack &stack, void (*entry)()) {
        getcontext(&registers);
        registers.uc_stack.ss_sp = stack.bottom;
        registers.uc_stack.ss_size = Stack::bytes;
        registers.uc_link = nullptr;
        makecontext(&registers, entry, 0);
    }
    void switch_to(Context &other) { swapcontext(&registers, &other.registers); }

private:
    ucontext_t registers;
};

#endif

}  // namespace cuda_on_cpu
