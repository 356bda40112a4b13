// Loads and stores of V adjacent numbers of any floating dtype, on the device. V is 8 where every address is
// a multiple of eight numbers and of 16 bytes, else 1.
#pragma once

#include "../core/cuda.cuh"
#include "layout.h"

namespace bevkd2::distill {

template <typename A, typename T, int V>
__device__ __forceinline__ void load_typed(const T* from, A (&out)[V]) {
  if constexpr (V == 1) {
    out[0] = static_cast<A>(cuda::load1(from));
  } else {
    constexpr int kSize = cuda::Pack<T>::kSize;
#pragma unroll
    for (int i = 0; i < V; i += kSize) {
      const cuda::Pack<T> pack = cuda::load16(from + i);
#pragma unroll
      for (int j = 0; j < kSize; ++j) out[i + j] = static_cast<A>(pack.item[j]);
    }
  }
}

template <typename A, typename T, int V>
__device__ __forceinline__ void store_typed(const A (&from)[V], T* to) {
  if constexpr (V == 1) {
    *to = static_cast<T>(from[0]);
  } else {
    constexpr int kSize = cuda::Pack<T>::kSize;
#pragma unroll
    for (int i = 0; i < V; i += kSize) {
      cuda::Pack<T> pack;
#pragma unroll
      for (int j = 0; j < kSize; ++j) pack.item[j] = static_cast<T>(from[i + j]);
      cuda::store16(to + i, pack);
    }
  }
}

// out = base[at..at + V); the branch is the same for all threads.
template <typename A, int V>
__device__ __forceinline__ void load(const void* base, ScalarType dtype, int64_t at, A (&out)[V]) {
  if (dtype == ScalarType::Float) {
    load_typed(static_cast<const float*>(base) + at, out);
  } else if (dtype == ScalarType::Half) {
    load_typed(static_cast<const Half*>(base) + at, out);
  } else if (dtype == ScalarType::BFloat16) {
    load_typed(static_cast<const BFloat16*>(base) + at, out);
  } else if constexpr (std::is_same_v<A, double>) {
    load_typed(static_cast<const double*>(base) + at, out);
  }
}

template <typename A, int V>
__device__ __forceinline__ void store(const A (&from)[V], ScalarType dtype, int64_t at, void* base) {
  if (dtype == ScalarType::Float) {
    store_typed(from, static_cast<float*>(base) + at);
  } else if (dtype == ScalarType::Half) {
    store_typed(from, static_cast<Half*>(base) + at);
  } else if (dtype == ScalarType::BFloat16) {
    store_typed(from, static_cast<BFloat16*>(base) + at);
  } else if constexpr (std::is_same_v<A, double>) {
    store_typed(from, static_cast<double*>(base) + at);
  }
}

// Whether dimension `last` (1 or 2), of `size` numbers, can be read eight at a time: size and the other
// strides are multiples of eight, and the first address is a multiple of 16 bytes.
template <typename T>
inline bool in_eights(const Strided<T>& view, int last, int64_t size) {
  if (!view.data) return true;
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && size % 8 == 0 && view.stride[0] % 8 == 0 &&
         view.stride[3 - last] % 8 == 0;
}

}  // namespace bevkd2::distill
