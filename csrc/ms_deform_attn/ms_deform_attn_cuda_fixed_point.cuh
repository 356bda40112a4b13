// Sums whose result does not depend on the order of terms: value's gradient in 64-bit fixed point, for
// torch.use_deterministic_algorithms.
//
// Every term is bounded by M = max |grad_out| * max |attention weight|, both found on the device, and no sum
// has more than `terms` times M in it. One unit is 2^(e - 61) with e the smallest integer where terms * M <
// 2^e: no sum can overflow, and a term is off by at most half a unit, terms * M * 2^-61. (At 60,000 rows:
// 2^-45 of M.) Where grad_out, a weight or M is not finite, the whole gradient is NaN.
#pragma once

#include "../core/cuda.cuh"
#include "ms_deform_attn_problem.h"

namespace bevkd2::msda {

struct FixedPoint {
  unsigned long long* state;  // bits of max |grad_out|, bits of max |weight| (as double), "not finite" seen
  bool softmax;               // no weight is above 1, and the second of these is not used
  int terms_log2;             // of the largest number of terms of size M in a sum, rounded up
  static constexpr int64_t kStates = 3;

  __device__ double largest() const {
    const double grad = __longlong_as_double(static_cast<long long>(state[0]));
    return softmax ? grad : grad * __longlong_as_double(static_cast<long long>(state[1]));
  }
  // log2 of a unit; 0 where every term is zero or M is not finite.
  __device__ int unit() const {
    const double m = largest();
    if (!(m > 0.0 && m < static_cast<double>(INFINITY))) return 0;
    const int exponent = ::ilogb(m) + 1 + terms_log2 - 61;
    return exponent < -1000 ? -1000 : exponent;  // 2^1000 is still a number
  }
  __device__ bool is_broken() const { return state[2] != 0 || !(largest() < static_cast<double>(INFINITY)); }
};

// Adds terms of a kernel; the same in all its threads.
template <typename A>
struct FixedAdder {
  double scale;
  A bound;
  unsigned long long* broken;

  __device__ explicit FixedAdder(const FixedPoint& fixed)
      : scale(::ldexp(1.0, -fixed.unit())),
        bound(static_cast<A>(2.0 * fixed.largest())),
        broken(fixed.state + 2) {}

  __device__ void add(unsigned long long* to, A term) const {
    if (!(::fabs(term) <= bound)) {
      *broken = 1;  // benign race: all threads write 1
      return;
    }
    atomicAdd(to, static_cast<unsigned long long>(__double2ll_rn(static_cast<double>(term) * scale)));
  }
};

// The bits of the largest |from[i]| as double. NaN is above infinity.
template <typename T>
__global__ void __launch_bounds__(256) largest_kernel(const T* from, int64_t count, unsigned long long* to) {
  unsigned long long highest = 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const double size = ::fabs(static_cast<double>(static_cast<accumulate_t<T>>(from[i])));
    const auto bits = static_cast<unsigned long long>(__double_as_longlong(size));
    highest = bits > highest ? bits : highest;
  }
  highest = cuda::lanes_max(highest);
  if (threadIdx.x % cuda::kLanes == 0) atomicMax(to, highest);
}

template <typename A>
__global__ void __launch_bounds__(256)
    from_fixed_kernel(const unsigned long long* from, int64_t count, const FixedPoint fixed, A* to) {
  const double unit = fixed.is_broken() ? static_cast<double>(NAN) : ::ldexp(1.0, fixed.unit());
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x)
    to[i] = static_cast<A>(static_cast<double>(static_cast<long long>(from[i])) * unit);
}

}  // namespace bevkd2::msda
