// Runs CUDA blocks on one CPU core. Each thread is a fiber; a fiber runs until it ends or waits for others, and
// __syncthreads, __syncwarp, shuffles and votes are real rendezvous. Which warp goes on, the order of its threads and
// the order of the blocks are drawn from the seed: a kernel that lacks a barrier computes something else under some seed.
//
// This file is built once and never instrumented. A sanitizer sees what kernels do and is told here which fiber runs
// and what a barrier orders, through hooks that are null unless its library is preloaded.
#include "runtime.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

extern "C" {
#define HOOK __attribute__((weak))
HOOK void *__tsan_get_current_fiber();
HOOK void *__tsan_create_fiber(unsigned flags);
HOOK void __tsan_switch_to_fiber(void *fiber, unsigned flags);
HOOK void __tsan_acquire(void *address);
HOOK void __tsan_release(void *address);
HOOK void __sanitizer_start_switch_fiber(void **fake_stack_save, const void *bottom, size_t size);
HOOK void __sanitizer_finish_switch_fiber(void *fake_stack_save, const void **bottom_old, size_t *size_old);
HOOK void __asan_unpoison_memory_region(const volatile void *start, size_t size);
#undef HOOK

cuda_on_cpu::Position cuda_on_cpu_position;
}

namespace cuda_on_cpu {
namespace {

constexpr unsigned warp_size = 32;
constexpr unsigned tsan_no_sync = 1;      // a switch alone orders nothing
constexpr int poison = 0xFF;              // a NaN as float or double, -1 as an integer
constexpr size_t shared_alignment = 128;

enum class State { ready, at_barrier, at_collective, finished };

// Synchronisation objects come in pairs used in turn: what a thread does after one rendezvous, up to the next, must
// not look ordered before a thread that has not yet left the first.
using Clock = char;
using ClockPair = std::array<Clock, 2>;

struct Thread {
    Stack stack;
    Context context;
    void *tsan_fiber = nullptr, *asan_fake_stack = nullptr;
    uint3 index;
    unsigned linear, lane;
    State state;
    Site site;                  // where it waits
    unsigned barriers;          // how many __syncthreads it has reached
    unsigned collectives;       // how many warp collectives it has reached
    Contribution contribution;  // to the warp collective it waits at
    uint64_t received;          // from the last warp collective
    unsigned group, parities;   // lanes of that collective, and which of each lane's clocks it released
    ClockPair arrival;
};

struct Warp {
    unsigned first, lanes;
    std::vector<Thread *> ready;
};

std::vector<Thread> pool;  // grows with the largest block so far; only the first thread_count take part
std::vector<Warp> warps;
const Launch *launched;
Thread *current;
Context scheduler;
void *scheduler_tsan_fiber;
const void *scheduler_stack;
size_t scheduler_stack_bytes;
unsigned thread_count, finished_count;
int last_warp;
std::string error;
void *dynamic_shared;
uint64_t random_state;
ClockPair barrier_clock;
Clock block_start, block_end;

void acquire(Clock &clock) {
    if (__tsan_acquire) __tsan_acquire(&clock);
}

void release(Clock &clock) {
    if (__tsan_release) __tsan_release(&clock);
}

unsigned random_below(unsigned limit) {  // a 64-bit linear congruential generator (Knuth's MMIX), upper half
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<unsigned>((random_state >> 32) * limit >> 32);
}

template <class T>
void shuffle(std::vector<T> &items) {
    for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[random_below(i)]);
}

void fail(const std::string &message) {
    if (error.empty()) error = message;
}

std::string to_text(const Site &site) {
    return std::string(site.intrinsic) + " (" + site.file + ":" + std::to_string(site.line) + ")";
}

bool same_site(const Site &a, const Site &b) {
    return a.line == b.line && std::strcmp(a.intrinsic, b.intrinsic) == 0 && std::strcmp(a.file, b.file) == 0;
}

// Whether two waiting threads wait for each other.
bool same_rendezvous(const Thread &a, const Thread &b) {
    const bool in_warp = a.state == State::at_collective;
    return a.state == b.state && same_site(a.site, b.site) && (!in_warp || a.contribution.mask == b.contribution.mask);
}

// "57 have ended, 7 wait at __syncthreads (reduce.cu:31)"
std::string who_waits_where() {
    std::vector<std::pair<const Thread *, unsigned>> groups;
    for (const Thread *thread = pool.data(); thread != pool.data() + thread_count; thread++) {
        if (thread->state == State::finished) continue;
        auto group = std::find_if(groups.begin(), groups.end(), [&](auto &g) { return same_rendezvous(*g.first, *thread); });
        if (group == groups.end()) groups.push_back({thread, 1});
        else group->second++;
    }
    std::string text = finished_count ? std::to_string(finished_count) + " have ended" : "";
    for (auto &[thread, count] : groups) {
        text += (text.empty() ? "" : ", ") + std::to_string(count) + " wait at " + to_text(thread->site);
        if (thread->state != State::at_collective) continue;
        char mask[24];
        std::snprintf(mask, sizeof mask, " with mask %08x", thread->contribution.mask);
        text += mask;
    }
    return text;
}

void switch_to_scheduler() {
    Thread &thread = *current;
    const bool for_good = thread.state == State::finished;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(for_good ? nullptr : &thread.asan_fake_stack, scheduler_stack, scheduler_stack_bytes);
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler_tsan_fiber, tsan_no_sync);
    thread.context.switch_to(scheduler);
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(thread.asan_fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void thread_entry() {
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    acquire(block_start);
    launched->invoke(launched->arguments);
    release(block_end);
    current->state = State::finished;
    finished_count++;
    switch_to_scheduler();
    std::abort();
}

void resume(Thread &thread) {
    current = &thread;
    cuda_on_cpu_position.thread = thread.index;
    void *fake_stack = nullptr;
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake_stack, thread.stack.bottom, Stack::bytes);
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(thread.tsan_fiber, tsan_no_sync);
    scheduler.switch_to(thread.context);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void make_ready(Thread &thread) {
    thread.state = State::ready;
    warps[thread.linear / warp_size].ready.push_back(&thread);
}

bool holds(unsigned lanes, unsigned lane) { return lane < warp_size && (lanes >> lane & 1); }

// Hands every lane of a complete group what it asked for.
void finish_collective(Thread *lanes, unsigned group) {
    unsigned ballot = 0, parities = 0;
    for (unsigned lane = 0; lane < warp_size; lane++) {
        if (!holds(group, lane)) continue;
        ballot |= unsigned(lanes[lane].contribution.value != 0) << lane;
        parities |= (lanes[lane].collectives & 1) << lane;
    }
    for (unsigned lane = 0; lane < warp_size; lane++) {
        if (!holds(group, lane)) continue;
        Thread &thread = lanes[lane];
        const auto &[kind, mask, value, source] = thread.contribution;
        const uint64_t undefined = ~uint64_t(0);  // what a shuffle gets from a lane that takes no part
        thread.received = kind == Collective::vote ? ballot
                          : holds(group, source)   ? lanes[source].contribution.value
                                                   : undefined;
        thread.group = group;
        thread.parities = parities;
        make_ready(thread);
    }
}

// Lets those groups of the warp go on whose lanes have all arrived; lanes that have ended do not count.
void finish_collectives(const Warp &warp) {
    Thread *lanes = &pool[warp.first];
    unsigned unfinished = 0;
    for (unsigned lane = 0; lane < warp.lanes; lane++)
        unfinished |= unsigned(lanes[lane].state != State::finished) << lane;
    for (unsigned lane = 0; lane < warp.lanes; lane++) {
        if (lanes[lane].state != State::at_collective) continue;
        const unsigned group = lanes[lane].contribution.mask & unfinished;
        bool complete = true;
        for (unsigned other = 0; other < warp.lanes; other++)
            complete &= !holds(group, other) || same_rendezvous(lanes[lane], lanes[other]);
        if (complete) finish_collective(lanes, group);
    }
}

// Lets the block go on if all of it stands at one __syncthreads. A thread that has ended can never arrive.
void finish_barrier() {
    const bool together = finished_count == 0 && std::all_of(&pool[0], &pool[0] + thread_count, [](const Thread &thread) {
        return thread.state == State::at_barrier && same_rendezvous(thread, pool[0]);
    });
    if (!together) return fail("divergent barrier, the block can never go on: " + who_waits_where());
    for (unsigned i = 0; i < thread_count; i++) make_ready(pool[i]);
}

// The warp to go on, or null when every thread waits or has ended. The last one tends to go on, so that warps drift
// apart between two barriers as they may on a GPU.
Warp *next_warp() {
    if (last_warp >= 0 && !warps[last_warp].ready.empty() && random_below(4) != 0) return &warps[last_warp];
    std::vector<int> candidates;
    for (size_t i = 0; i < warps.size(); i++)
        if (!warps[i].ready.empty()) candidates.push_back(static_cast<int>(i));
    if (candidates.empty()) return nullptr;
    last_warp = candidates[random_below(candidates.size())];
    return &warps[last_warp];
}

void start_block() {
    for (size_t i = 0; i < launched->static_shared_count; i++)
        std::memset(launched->static_shared[i].start, poison, launched->static_shared[i].bytes);
    if (launched->dynamic_shared_bytes) std::memset(dynamic_shared, poison, launched->dynamic_shared_bytes);
    const dim3 &size = launched->block_size;
    finished_count = 0;
    last_warp = -1;
    for (unsigned i = 0; i < thread_count; i++) {
        Thread &thread = pool[i];
        thread.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        thread.linear = i;
        thread.lane = i % warp_size;
        thread.barriers = thread.collectives = 0;
        thread.context.start_at(thread.stack, thread_entry);
        make_ready(thread);
    }
}

void run_block() {
    start_block();
    release(block_start);  // blocks use the same shared memory one after another: for TSan they are ordered
    std::vector<Thread *> turn;
    while (finished_count < thread_count && error.empty()) {
        Warp *warp = next_warp();
        if (!warp) {
            finish_barrier();
            continue;
        }
        turn.clear();
        turn.swap(warp->ready);
        shuffle(turn);
        for (Thread *thread : turn)
            if (error.empty()) resume(*thread);
        finish_collectives(*warp);
    }
    acquire(block_end);
}

// After a failed launch threads are left in the midst of a kernel: drop what AddressSanitizer noted of their stacks.
void abandon_threads() {
    for (Warp &warp : warps) warp.ready.clear();
    if (!__asan_unpoison_memory_region) return;
    for (Thread &thread : pool) __asan_unpoison_memory_region(thread.stack.bottom, Stack::bytes);
}

void prepare_threads() {
    thread_count = launched->block_size.x * launched->block_size.y * launched->block_size.z;
    while (pool.size() < thread_count) pool.emplace_back();
    warps.resize((thread_count + warp_size - 1) / warp_size);
    for (unsigned i = 0; i < warps.size(); i++) {
        warps[i].first = i * warp_size;
        warps[i].lanes = std::min(warp_size, thread_count - i * warp_size);
    }
    if (!__tsan_create_fiber) return;
    scheduler_tsan_fiber = __tsan_get_current_fiber();
    for (unsigned i = 0; i < thread_count; i++)
        if (!pool[i].tsan_fiber) pool[i].tsan_fiber = __tsan_create_fiber(0);
}

// Waits, in the given state, until the scheduler makes the thread ready.
void wait_as(State state, const Site &site) {
    current->state = state;
    current->site = site;
    switch_to_scheduler();
}

}  // namespace

extern "C" {

void cuda_on_cpu_block_barrier(Site site) {
    Clock &clock = barrier_clock[current->barriers++ & 1];
    release(clock);
    wait_as(State::at_barrier, site);
    acquire(clock);
}

uint64_t cuda_on_cpu_warp_collective(const Contribution &contribution, Site site) {
    Thread &thread = *current;
    // Shuffles and votes exchange values, but only __syncwarp orders memory.
    const bool orders_memory = contribution.kind == Collective::sync;
    thread.contribution = contribution;
    thread.collectives++;
    if (!holds(contribution.mask, thread.lane)) fail("a lane calls " + to_text(site) + " with a mask that leaves it out");
    if (orders_memory) release(thread.arrival[thread.collectives & 1]);
    wait_as(State::at_collective, site);
    if (orders_memory) {
        Thread *lanes = &thread - thread.lane;
        for (unsigned lane = 0; lane < warp_size; lane++)
            if (holds(thread.group, lane)) acquire(lanes[lane].arrival[thread.parities >> lane & 1]);
    }
    return thread.received;
}

unsigned cuda_on_cpu_lane() { return current->lane; }

void *cuda_on_cpu_dynamic_shared() { return dynamic_shared; }

const char *cuda_on_cpu_launch(const Launch *launch) {
    launched = launch;
    error.clear();
    random_state = launch->seed;
    prepare_threads();
    const auto &[columns, rows, layers] = launch->grid_size;
    cuda_on_cpu_position = {{}, {}, launch->block_size, launch->grid_size};
    // Allocated to the byte, so that AddressSanitizer sees an overrun.
    dynamic_shared = nullptr;
    if (launch->dynamic_shared_bytes && posix_memalign(&dynamic_shared, shared_alignment, launch->dynamic_shared_bytes) != 0)
        return "no memory for the dynamic shared memory";
    std::vector<uint64_t> blocks(uint64_t(columns) * rows * layers);
    for (uint64_t i = 0; i < blocks.size(); i++) blocks[i] = i;
    shuffle(blocks);
    for (uint64_t i : blocks) {
        const uint3 block{unsigned(i % columns), unsigned(i / columns % rows), unsigned(i / columns / rows)};
        cuda_on_cpu_position.block = block;
        run_block();
        if (error.empty()) continue;
        error += " [block " + std::to_string(block.x) + "," + std::to_string(block.y) + "," + std::to_string(block.z) + "]";
        abandon_threads();
        break;
    }
    std::free(dynamic_shared);
    return error.empty() ? nullptr : error.c_str();
}

}  // extern "C"
}  // namespace cuda_on_cpu
