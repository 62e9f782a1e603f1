// What a kernel built for the CPU and the runtime that schedules its threads know of each other.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

// Where the running thread stands in the launch; the runtime changes it with every switch.
struct Position {
    uint3 thread, block;
    dim3 block_size, grid_size;
};

// A place in a kernel at which threads wait for each other: the intrinsic and the line that calls it.
struct Site {
    const char *intrinsic, *file;
    int line;
};

enum class Collective { sync, shuffle, vote };

// What one lane brings to a warp collective. `source` is the lane that a shuffle reads.
struct Contribution {
    Collective kind;
    unsigned mask;
    uint64_t value;
    unsigned source;
};

struct MemoryRange {
    void *start;
    size_t bytes;
};

struct Launch {
    void (*invoke)(void **);  // runs the kernel's body for the current thread
    void **arguments;         // addresses of the argument values
    dim3 grid_size, block_size;
    size_t dynamic_shared_bytes;
    const MemoryRange *static_shared;  // the kernel's __shared__ variables
    size_t static_shared_count;
    uint64_t seed;  // of thread order and block order
};

extern "C" {
extern Position cuda_on_cpu_position;
void cuda_on_cpu_block_barrier(Site site);
// The lanes of `mask` meet; a shuffle returns the source lane's value, a vote the lanes whose value is not 0 as bits.
uint64_t cuda_on_cpu_warp_collective(const Contribution &contribution, Site site);
unsigned cuda_on_cpu_lane();
void *cuda_on_cpu_dynamic_shared();
// Runs every block of the grid. Returns null, or what went wrong (valid until the next launch).
const char *cuda_on_cpu_launch(const Launch *launch);
}

}  // namespace cuda_on_cpu
