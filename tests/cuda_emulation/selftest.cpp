// Kernels that are right or wrong in a known way; test_emulation.py runs one by name.
#include <cstdio>
#include <string>

#include "cuda_runtime.h"

namespace {

float numbers[256];
int counter = 0;

float* shared() { return reinterpret_cast<float*>(bevkd2_emulation::shared_memory()); }

void reverse_through_shared_memory() {
  shared()[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  numbers[threadIdx.x] = shared()[blockDim.x - 1 - threadIdx.x];
}

void sum_by_shuffles() {
  double v = threadIdx.x % 32;
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xFFFFFFFFU, v, step);
  numbers[threadIdx.x] = static_cast<float>(v);
}

void half_a_warp_shuffles() {
  if (threadIdx.x % 32 < 16)
    numbers[threadIdx.x] = static_cast<float>(__shfl_down_sync(0xFFFFU, threadIdx.x, 1, 16));
}

void votes() {
  const int odd = threadIdx.x % 2;
  numbers[threadIdx.x] = static_cast<float>(__popc(__ballot_sync(0xFFFFFFFFU, odd)) +
                                            100 * __all_sync(0xFFFFFFFFU, odd) + __syncthreads_count(odd));
}

void atomics() { atomicAdd(&counter, 2); }

void reads_what_nobody_wrote() { numbers[threadIdx.x] = shared()[threadIdx.x]; }

void writes_too_far() { shared()[blockDim.x + threadIdx.x] = 1; }

void barrier_in_a_branch() {
  if (threadIdx.x < 3)
    __syncthreads();
  else
    __syncthreads();
}

void shuffle_in_a_branch() {
  if (threadIdx.x < 16) numbers[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFU, 1.0F, 1);
  __syncthreads();
}

void shuffle_after_the_end() {
  if (threadIdx.x == 0) return;
  numbers[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFU, 1.0F, 1);
}

void barrier_against_shuffle() {
  if (threadIdx.x == 40)
    __syncthreads();
  else
    __syncwarp();
}

void traps() {
  if (threadIdx.x == 5) __trap();
}

template <typename F>
void run(const F& kernel) {
  bevkd2_emulation::launch(2, 64, 64 * sizeof(float), [&] { kernel(); });
}

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  try {
#define RUN(kernel) \
  if (name == #kernel) run(kernel)
    RUN(reverse_through_shared_memory);
    RUN(sum_by_shuffles);
    RUN(half_a_warp_shuffles);
    RUN(votes);
    RUN(atomics);
    RUN(reads_what_nobody_wrote);
    RUN(writes_too_far);
    RUN(barrier_in_a_branch);
    RUN(shuffle_in_a_branch);
    RUN(shuffle_after_the_end);
    RUN(barrier_against_shuffle);
    RUN(traps);
#undef RUN
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
    return 0;
  }
  std::printf("%g %g %g %g %d\n", numbers[0], numbers[1], numbers[15], numbers[63], counter);
}
