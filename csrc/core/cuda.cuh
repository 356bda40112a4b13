// What every .cu needs, on the host and on the device. What a C++ compiler cannot compile (launches, inline
// PTX) is in this file alone, behind BEVKD2_CUDA_EMULATION, so that tests/cuda_emulation can compile every
// .cu for the CPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#ifndef BEVKD2_CUDA_EMULATION
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#endif

#ifdef BEVKD2_CUDA_EMULATION
// Registers this file's kernels: BEVKD2_CUDA_LIBRARY(m) { m.impl("name", TORCH_BOX(&function)); }
#define BEVKD2_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(bevkd2, CPU, m)
// Declares `name`, the block's dynamic shared memory, as bytes aligned to 16.
#define BEVKD2_SHARED_MEMORY(name) unsigned char* const name = bevkd2_emulation::shared_memory()
#define BEVKD2_CUDA_CHECK(call) STD_TORCH_CHECK((call) == cudaSuccess, #call " failed")
#else
#define BEVKD2_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(bevkd2, CUDA, m)
#define BEVKD2_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#define BEVKD2_CUDA_CHECK(call) STD_CUDA_CHECK(call)
#endif

namespace bevkd2::cuda {

using torch::stable::Tensor;

constexpr int kLanes = 32;  // of a warp
constexpr unsigned kAllLanes = 0xFFFFFFFFU;
constexpr int64_t kMaxBlocks = 0x7FFFFFFF;         // of gridDim.x
constexpr size_t kSharedWithoutOptIn = 48 * 1024;  // bytes per block without opting in
constexpr size_t kSharedEverywhere = 99 * 1024;    // bytes per block on every architecture from sm_80

// Makes a tensor's device the current one while it lives, and holds its current stream.
class OnDevice {
 public:
  cudaStream_t stream = nullptr;
#ifdef BEVKD2_CUDA_EMULATION
  explicit OnDevice(const Tensor&) {}
#else
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// The number of blocks (gridDim.x) for `tasks`, at `each` tasks per block.
inline unsigned blocks_for(int64_t tasks, int64_t each) {
  const int64_t blocks = (tasks + each - 1) / each;
  STD_TORCH_CHECK(blocks <= kMaxBlocks, "bevkd2: ", tasks, " tasks are more than one launch takes");
  return static_cast<unsigned>(blocks);
}

// Starts a kernel and checks that it started. An empty grid is no launch.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kSharedWithoutOptIn)
    BEVKD2_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shared_bytes)));
#ifdef BEVKD2_CUDA_EMULATION
  bevkd2_emulation::launch(grid, block, shared_bytes, [&] { kernel(arguments...); });
#else
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  // clang-format on
  STD_CUDA_KERNEL_LAUNCH_CHECK();
#endif
}

// Sets bytes to zero, in the stream's order.
inline void fill_zero(void* to, size_t bytes, cudaStream_t stream) {
  if (bytes > 0) BEVKD2_CUDA_CHECK(cudaMemsetAsync(to, 0, bytes, stream));
}

// ---- on the device ----

// Ends the kernel (and, on a GPU, the context) with a message: for checks of data that only the device reads.
__device__ inline void fail(const char* message) {
#ifdef BEVKD2_CUDA_EMULATION
  bevkd2_emulation::fail(message);
#else
  printf("bevkd2: %s\n", message);
  __trap();
#endif
}

// Sixteen bytes of T: what one lane loads at once.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T item[kSize];
};

// Sixteen aligned bytes of memory that no thread writes during the kernel (ld.global.nc).
template <typename T>
__device__ __forceinline__ Pack<T> load16(const T* from) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof(pack));
  return pack;
}

// Such memory as numbers to calculate with: to[v] = from[v].
template <typename T, typename A>
__device__ __forceinline__ void load_floats(const T* from, A (&to)[Pack<T>::kSize]) {
  const Pack<T> pack = load16(from);
#pragma unroll
  for (int v = 0; v < Pack<T>::kSize; ++v) to[v] = static_cast<A>(pack.item[v]);
}

// bfloat16 is the upper half of a float, and a mask is one instruction where the conversion of one number
// takes two.
__device__ __forceinline__ void load_floats(const torch::headeronly::BFloat16* from, float (&to)[8]) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    to[2 * w] = __uint_as_float(words[w] << 16);
    to[2 * w + 1] = __uint_as_float(words[w] & 0xFFFF0000U);
  }
}

// Four 16-bit numbers of such memory: eight aligned bytes.
template <typename T>
__device__ __forceinline__ void load_four(const T* from, float (&to)[4]) {
  static_assert(sizeof(T) == 2);
  const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
  T items[4];
  memcpy(items, &bits, sizeof(items));
#pragma unroll
  for (int v = 0; v < 4; ++v) to[v] = static_cast<float>(items[v]);
}

// One element of such memory.
template <typename T>
__device__ __forceinline__ T load1(const T* from) {
  if constexpr (sizeof(T) == 2) {
    const unsigned short bits = __ldg(reinterpret_cast<const unsigned short*>(from));
    return T(bits, T::from_bits());
  } else {
    return __ldg(from);
  }
}

template <typename T>
__device__ __forceinline__ void store16(T* to, const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof(bits));
  *reinterpret_cast<uint4*>(to) = bits;
}

// to[0..3] += v, one reduction of 16 bytes from sm_90 on. `to` is global memory, aligned to 16.
__device__ __forceinline__ void reduce_add(float* to, const float (&v)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(v[0]),
               "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
#else
  for (int i = 0; i < 4; ++i) atomicAdd(to + i, v[i]);
#endif
}

__device__ __forceinline__ void reduce_add(double* to, const double (&v)[2]) {
  atomicAdd(to, v[0]);
  atomicAdd(to + 1, v[1]);
}

// The sum over each aligned group of `size` lanes (a power of two), in every lane of it. All 32 lanes call.
template <typename A>
__device__ __forceinline__ A lanes_sum(A v, int size = kLanes) {
  for (int step = size / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

// The same with the largest; NaN only where `v` of the lane itself is.
template <typename A>
__device__ __forceinline__ A lanes_max(A v, int size = kLanes) {
  for (int step = size / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, v, step);
    v = other > v ? other : v;
  }
  return v;
}

// The sum over a block of whole warps (1D, at most 1024 threads), in every thread of it, always in the same
// order. `scratch` is 32 elements of shared memory; all threads call.
template <typename A>
__device__ __forceinline__ A block_sum(A v, A* scratch) {
  const int lane = threadIdx.x % kLanes, warps = blockDim.x / kLanes;
  v = lanes_sum(v);
  __syncthreads();  // an earlier call's scratch may still be read
  if (lane == 0) scratch[threadIdx.x / kLanes] = v;
  __syncthreads();
  return lanes_sum(lane < warps ? scratch[lane] : A(0));
}

}  // namespace bevkd2::cuda
