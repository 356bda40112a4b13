// Stands in for CUDA's header of this name where a .cu is compiled for the CPU. See README.md.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __constant__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

// ---- types ----
#define BEVKD2_VECTOR(T, name, alignment)                            \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                 \
  struct name##3 { T x, y, z; };                                     \
  struct alignas(alignment) name##4 { T x, y, z, w; };               \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
BEVKD2_VECTOR(float, float, 16)
BEVKD2_VECTOR(double, double, 16)
BEVKD2_VECTOR(int, int, 16)
BEVKD2_VECTOR(unsigned, uint, 16)
BEVKD2_VECTOR(short, short, 8)
BEVKD2_VECTOR(unsigned short, ushort, 8)
BEVKD2_VECTOR(long long, longlong, 16)
BEVKD2_VECTOR(unsigned long long, ulonglong, 16)
#undef BEVKD2_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#include "fibers.h"

// ---- meetings of threads; the two last arguments tell where the call is ----
#define BEVKD2_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline int __syncthreads_count(int predicate, BEVKD2_HERE) {
  using bevkd2_emulation::Wait;
  return static_cast<int>(bevkd2_emulation::block().meet({Wait::kBlock, file, line, 0, predicate ? 1U : 0U}));
}
inline void __syncthreads(BEVKD2_HERE) { __syncthreads_count(0, file, line); }
inline int __syncthreads_or(int predicate, BEVKD2_HERE) {
  return __syncthreads_count(predicate, file, line) > 0;
}
inline int __syncthreads_and(int predicate, BEVKD2_HERE) {
  return __syncthreads_count(!predicate, file, line) == 0;
}

inline unsigned __ballot_sync(unsigned mask, int predicate, BEVKD2_HERE) {
  using bevkd2_emulation::Wait;
  return static_cast<unsigned>(
      bevkd2_emulation::block().meet({Wait::kVote, file, line, mask, predicate ? 1U : 0U}));
}
inline int __any_sync(unsigned mask, int predicate, BEVKD2_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, BEVKD2_HERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFU, BEVKD2_HERE) { __ballot_sync(mask, 0, file, line); }

namespace bevkd2_emulation {

inline int lane() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kLanes);
}

// `source` outside the caller's group of `width` lanes gives the caller's own value, as in CUDA.
template <typename T>
T shuffle(unsigned mask, T value, int source, int width, const char* file, int line) {
  const int group = lane() / width * width;
  const int from = source >= group && source < group + width ? source : lane();
  return from_bits<T>(block().meet({Wait::kShuffle, file, line, mask, to_bits(value), from}));
}

}  // namespace bevkd2_emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, BEVKD2_HERE) {
  const int group = bevkd2_emulation::lane() / width * width;
  return bevkd2_emulation::shuffle(mask, value, group + (source & (width - 1)), width, file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, BEVKD2_HERE) {
  return bevkd2_emulation::shuffle(mask, value, bevkd2_emulation::lane() ^ lanes, width, file, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, BEVKD2_HERE) {
  return bevkd2_emulation::shuffle(mask, value, bevkd2_emulation::lane() + static_cast<int>(by), width, file,
                                   line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, BEVKD2_HERE) {
  return bevkd2_emulation::shuffle(mask, value, bevkd2_emulation::lane() - static_cast<int>(by), width, file,
                                   line);
}
#undef BEVKD2_HERE

// ---- memory ----
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { bevkd2_emulation::fail("__trap"); }

template <typename T>
T __ldg(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % alignof(T) != 0) bevkd2_emulation::fail("a load is not aligned");
  T v;
  std::memcpy(&v, from, sizeof(T));
  return v;
}

// Threads change only at meetings, so plain arithmetic is atomic. All return the old value.
#define BEVKD2_ATOMIC(name, expression)                   \
  template <typename T>                                   \
  T name(T* to, std::type_identity_t<T> v) {              \
    if (reinterpret_cast<uintptr_t>(to) % sizeof(T) != 0) \
      bevkd2_emulation::fail("an atomic is not aligned"); \
    const T old = *to;                                    \
    *to = expression;                                     \
    return old;                                           \
  }
BEVKD2_ATOMIC(atomicAdd, static_cast<T>(old + v))
BEVKD2_ATOMIC(atomicSub, static_cast<T>(old - v))
BEVKD2_ATOMIC(atomicMax, v > old ? v : old)
BEVKD2_ATOMIC(atomicMin, v < old ? v : old)
BEVKD2_ATOMIC(atomicExch, v)
BEVKD2_ATOMIC(atomicOr, old | v)
BEVKD2_ATOMIC(atomicAnd, old& v)
#undef BEVKD2_ATOMIC
template <typename T>
T atomicCAS(T* to, std::type_identity_t<T> compare, std::type_identity_t<T> v) {
  const T old = *to;
  if (old == compare) *to = v;
  return old;
}

// ---- arithmetic that CUDA has in the global namespace ----
using std::max;
using std::min;
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v)); }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1.0F / std::sqrt(v); }
inline double rsqrt(double v) { return 1.0 / std::sqrt(v); }
inline float __saturatef(float v) { return v > 0.0F ? (v < 1.0F ? v : 1.0F) : 0.0F; }
inline long long __double2ll_rn(double v) { return std::llrint(v); }
inline long long __float2ll_rn(float v) { return std::llrint(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }

// ---- the host's side: one device, one stream, everything done at once ----
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

template <typename F>
cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute, int bytes) {
  return bytes <= 99 * 1024 ? cudaSuccess : cudaErrorInvalidValue;  // what sm_86 and sm_89 have
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  std::memset(to, byte, bytes);
  return cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
