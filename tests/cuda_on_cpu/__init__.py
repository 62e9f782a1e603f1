"""CUDA sources on a machine without a GPU: emulator.load builds them, device.xp stands for CuPy.

runtime.cpp runs a block's threads as fibers (fiber.h), cuda_shim.h is the CUDA C++ that a kernel sees, and planted.cu
holds kernels, right and wrong, by which tests/test_cuda_on_cpu.py and tests/test_sanitizers.py prove all of it.

| defect in a kernel or its launch            | found by                                                            |
| ------------------------------------------- | ------------------------------------------------------------------- |
| missing __syncthreads or __syncwarp         | wrong results under some seed; ThreadSanitizer names both lines     |
| divergent barrier, lanes that never meet    | a report of who waits where                                         |
| memory read before it is written            | NaN                                                                 |
| shared or global array out of bounds        | AddressSanitizer, UndefinedBehaviorSanitizer: file and line         |
| misaligned vector access                    | UndefinedBehaviorSanitizer                                          |
| wrong scalar or struct size, dtype, host    | the check of a launch's arguments                                   |
| a launch that no GPU takes                  | the check of its limits                                             |
| results that depend on the order of blocks  | other bits under another seed                                       |

A convolution runs at about 4 GMAC/s on one core; a thread's rendezvous takes 50 to 120 ns, on other processors than
x86-64 several times that.

Not emulated: PTX, tensor cores, asynchronous copies, contraction to fused multiply-add, occupancy. A race between
blocks is seen by its result only: for ThreadSanitizer blocks follow one another. Code for real GPUs alone stands
behind `#ifndef __CUDA_SHIM__` or a test of __CUDA_ARCH__, which is not defined here.
"""
