// Running statistics of a pair of softmaxes, on the device. softmax_kl_cpu_kernels.h has the formulas.
#pragma once

#include "../core/cuda.cuh"

namespace bevkd2::distill {

// Sums relative to the largest so far: of exp((s - max_s) / T), likewise of t, and of
// exp((t - max_t) / T) * ((t - max_t) - (s - max_s)) / T. Empty where sum_t is zero.
template <typename A>
struct Statistics {
  A max_s = 0, max_t = 0, sum_s = 0, sum_t = 0, cross = 0;

  __device__ void add(A s, A t, A inverse) {
    if (sum_t == A(0)) {
      max_s = s;
      max_t = t;
    }
    A ds = (s - max_s) * inverse, dt = (t - max_t) * inverse, et = A(1);
    if (ds > A(0)) {
      sum_s = sum_s * exp(-ds) + A(1);
      cross += ds * sum_t;
      max_s = s;
      ds = 0;
    } else {
      sum_s += exp(ds);
    }
    if (dt > A(0)) {
      const A shrink = exp(-dt);
      cross = (cross - dt * sum_t) * shrink;
      sum_t = sum_t * shrink + A(1);
      max_t = t;
      dt = 0;
    } else {
      et = exp(dt);
      sum_t += et;
    }
    cross += et * (dt - ds);
  }

  // Makes the sums relative to other maxima, which are not smaller.
  __device__ void shift(A new_s, A new_t, A inverse) {
    const A ds = (new_s - max_s) * inverse, dt = (new_t - max_t) * inverse, shrink = exp(-dt);
    cross = (cross + (ds - dt) * sum_t) * shrink;
    sum_s *= exp(-ds);
    sum_t *= shrink;
    max_s = new_s;
    max_t = new_t;
  }

  __device__ void merge(Statistics other, A inverse) {
    if (other.sum_t == A(0)) return;
    if (sum_t == A(0)) {
      *this = other;
      return;
    }
    const A new_s = other.max_s > max_s ? other.max_s : max_s;
    const A new_t = other.max_t > max_t ? other.max_t : max_t;
    shift(new_s, new_t, inverse);
    other.shift(new_s, new_t, inverse);
    sum_s += other.sum_s;
    sum_t += other.sum_t;
    cross += other.cross;
  }

  __device__ A divergence() const { return cross / sum_t + (log(sum_s) - log(sum_t)); }
};

// The gradient of a row's entries: factor * (softmax(s / T) - softmax(t / T)); zero where factor is 0.
template <typename A>
struct Shares {
  A max_s = 0, max_t = 0, share_s = 0, share_t = 0, inverse = 0;
  bool counts = false;

  Shares() = default;
  __device__ Shares(const Statistics<A>& stats, A factor, A inverse_temperature)
      : max_s(stats.max_s),
        max_t(stats.max_t),
        share_s(factor / stats.sum_s),
        share_t(factor / stats.sum_t),
        inverse(inverse_temperature),
        counts(factor != A(0)) {}

  __device__ A gradient(A s, A t) const {
    const A value = exp((s - max_s) * inverse) * share_s - exp((t - max_t) * inverse) * share_t;
    return counts ? value : A(0);
  }
};

// The statistics of each aligned group of `size` lanes (a power of two), in every lane of it; always in the
// same order. All 32 lanes call.
template <typename A>
__device__ Statistics<A> lanes_merge(Statistics<A> stats, A inverse, int size = cuda::kLanes) {
  for (int step = size / 2; step > 0; step /= 2) {
    Statistics<A> other;
    other.max_s = __shfl_xor_sync(cuda::kAllLanes, stats.max_s, step);
    other.max_t = __shfl_xor_sync(cuda::kAllLanes, stats.max_t, step);
    other.sum_s = __shfl_xor_sync(cuda::kAllLanes, stats.sum_s, step);
    other.sum_t = __shfl_xor_sync(cuda::kAllLanes, stats.sum_t, step);
    other.cross = __shfl_xor_sync(cuda::kAllLanes, stats.cross, step);
    stats.merge(other, inverse);
  }
  return stats;
}

// The same over a block of whole warps; `shared` has one element per warp.
template <typename A>
__device__ Statistics<A> block_merge(Statistics<A> stats, A inverse, Statistics<A>* shared) {
  const int warps = blockDim.x / cuda::kLanes;
  stats = lanes_merge(stats, inverse);
  __syncthreads();  // what an earlier call left may still be read
  if (threadIdx.x % cuda::kLanes == 0) shared[threadIdx.x / cuda::kLanes] = stats;
  __syncthreads();
  Statistics<A> whole = shared[0];
  for (int i = 1; i < warps; ++i) whole.merge(shared[i], inverse);
  return whole;
}

}  // namespace bevkd2::distill
