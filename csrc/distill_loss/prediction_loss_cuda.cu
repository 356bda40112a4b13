// Distances of class predictions on CUDA. Neighbouring lanes take the classes of a location. A first kernel
// sums the weights of both groups per block; each block of the main kernel adds these sums itself, so that it
// can write final gradients. All sums are in a fixed order.
#include "device_io.cuh"
#include "prediction_loss.h"
#include "softmax_statistics.cuh"

namespace bevkd2::distill::prediction {
namespace {

using cuda::kLanes;

constexpr int kThreads = 256;
constexpr int kCounters = 64;  // blocks of count_kernel
constexpr int kRounds = 4;     // locations that a group of lanes takes one after another

// A sum for each group.
struct Pair {
  double objects, background;
};

__device__ inline Pair block_sums(Pair p, double* scratch) {
  p.objects = cuda::block_sum(p.objects, scratch);
  p.background = cuda::block_sum(p.background, scratch);
  return p;
}

template <typename A>
__global__ void __launch_bounds__(kThreads, 2) count_kernel(const Problem<A> p, Pair* counts) {
  BEVKD2_SHARED_MEMORY(memory);
  Pair sum{0, 0};
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < p.batch * p.locations;
       at += kCounters * kThreads)
    (p.is_object(at) ? sum.objects : sum.background) += static_cast<double>(p.weight(at));
  sum = block_sums(sum, reinterpret_cast<double*>(memory));
  if (threadIdx.x == 0) counts[blockIdx.x] = sum;
}

// factor / total of both groups; all threads call.
template <typename A>
__device__ Pair scales_of(const Problem<A>& p, const Pair* counts, double* scratch) {
  Pair sum{0, 0};
  if (threadIdx.x < kCounters) sum = counts[threadIdx.x];
  sum = block_sums(sum, scratch);
  return {p.factors[0] / (sum.objects > 0 ? sum.objects : 1),
          p.factors[1] / (sum.background > 0 ? sum.background : 1)};
}

// A distance and its derivative by the student's logit.
template <typename A>
struct Term {
  A value, slope;
};

template <typename A>
__device__ inline A sigmoid(A x, A shrunk) {
  return x < A(0) ? shrunk / (A(1) + shrunk) : A(1) / (A(1) + shrunk);
}

template <typename A>
__device__ inline A shrink(A x) {
  return exp(x < A(0) ? x : -x);
}

// prediction_loss_cpu_kernels.h has the formula.
template <typename A>
__device__ Term<A> bernoulli(A student, A teacher, A temperature) {
  const A a = student / temperature, b = teacher / temperature;
  const bool negative = b < A(0);
  const A s = negative ? -a : a, t = negative ? -b : b;
  const A shrunk_s = shrink(s), shrunk_t = shrink(t), rest = shrunk_t / (A(1) + shrunk_t);
  const A kl = (s < A(0) ? -s : A(0)) + (rest * (s - t) + (log1p(shrunk_s) - log1p(shrunk_t)));
  const A gap = sigmoid(s, shrunk_s) - (A(1) - rest);
  return {temperature * temperature * kl, temperature * (negative ? -gap : gap)};
}

template <typename A>
__device__ Term<A> elementwise(Distance distance, A s, A t, A temperature) {
  if (distance == Distance::bernoulli) return bernoulli(s, t, temperature);
  if (distance == Distance::logits) return {(s - t) * (s - t), A(2) * (s - t)};
  const A shrunk = shrink(s), gap = sigmoid(s, shrunk) - sigmoid(t, shrink(t));
  const A share = A(1) + shrunk;
  return {gap * gap, A(2) * gap * (shrunk / (share * share))};
}

template <typename A>
__device__ inline A logit(const void* base, ScalarType dtype, int64_t at) {
  A out[1];
  load(base, dtype, at, out);
  return out[0];
}

// One location, by `size` lanes; `active` is false where there is none, or its weight is zero. Returns its
// distance, in every lane of the group, and writes its gradient.
template <typename A>
__device__ A one_location(const Problem<A>& p, int64_t at, bool exists, bool active, int size, A factor) {
  const int lane = threadIdx.x % size;
  const bool softmax = p.distance == Distance::softmax;
  A total = 0;
  Statistics<A> stats;
  for (int64_t k = lane; active && k < p.classes; k += size) {
    const A s = logit<A>(p.student, p.student_dtype, at * p.classes + k);
    const A t = logit<A>(p.teacher, p.teacher_dtype, at * p.classes + k);
    if (softmax) {
      stats.add(s, t, A(1) / p.temperature);
    } else {
      const Term<A> term = elementwise(p.distance, s, t, p.temperature);
      total += term.value;
    }
  }
  if (softmax) {
    stats = lanes_merge(stats, A(1) / p.temperature, size);
    if (active && p.classes > 0) total = p.temperature * p.temperature * stats.divergence();
  } else {
    total = cuda::lanes_sum(total, size);
  }
  if (!p.grad_logits || !exists) return total;
  const Shares<A> shares(stats, factor * p.temperature, A(1) / p.temperature);
  for (int64_t k = lane; k < p.classes; k += size) {
    A grad[1] = {A(0)};
    if (active && factor != A(0)) {
      const A s = logit<A>(p.student, p.student_dtype, at * p.classes + k);
      const A t = logit<A>(p.teacher, p.teacher_dtype, at * p.classes + k);
      grad[0] = softmax ? shares.gradient(s, t) : factor * elementwise(p.distance, s, t, p.temperature).slope;
    }
    store(grad, p.student_dtype, at * p.classes + k, p.grad_logits);
  }
  return total;
}

// partials: both groups' sums of every block, before factor and total.
template <typename A>
__global__ void __launch_bounds__(kThreads, 2)
    loss_kernel(const Problem<A> p, int size, const Pair* counts, Pair* partials) {
  BEVKD2_SHARED_MEMORY(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  const Pair scales = scales_of(p, counts, scratch);
  const double upstream[2] = {p.upstream ? static_cast<double>(p.upstream[0]) : 1,
                              p.upstream ? static_cast<double>(p.upstream[1]) : 1};
  const A coefficients[2] = {static_cast<A>(scales.objects * upstream[0]),
                             static_cast<A>(scales.background * upstream[1])};
  const int groups = kThreads / size;
  Pair sum{0, 0};
  for (int round = 0; round < kRounds; ++round) {
    const int64_t at = (int64_t{blockIdx.x} * kRounds + round) * groups + threadIdx.x / size;
    const bool exists = at < p.batch * p.locations;
    const A weight = exists ? p.weight(at) : A(0);
    const bool active = weight != A(0), object = exists && p.is_object(at);
    const A guidance = active && object ? p.guidance_of(at) : A(1);
    const A coefficient = (object ? coefficients[0] : coefficients[1]) * weight;
    const A total = one_location(p, at, exists, active, size, coefficient * guidance);
    if (!exists || threadIdx.x % size != 0) continue;
    if (active) (object ? sum.objects : sum.background) += static_cast<double>(weight * guidance * total);
    if (p.grad_guidance) p.grad_guidance[at] = active && object ? coefficient * total : A(0);
  }
  sum = block_sums(sum, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One block.
template <typename A>
__global__ void __launch_bounds__(kThreads, 2)
    finish_kernel(const Problem<A> p, const Pair* counts, const Pair* partials, int64_t blocks) {
  BEVKD2_SHARED_MEMORY(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  const Pair scales = scales_of(p, counts, scratch);
  Pair sum{0, 0};
  for (int64_t i = threadIdx.x; i < blocks; i += kThreads) {
    sum.objects += partials[i].objects;
    sum.background += partials[i].background;
  }
  sum = block_sums(sum, scratch);
  if (threadIdx.x != 0) return;
  p.losses[0] = static_cast<A>(scales.objects * sum.objects);
  p.losses[1] = static_cast<A>(scales.background * sum.background);
}

struct Cuda {
  template <typename A>
  static void run(const Problem<A>& p, const Tensor& student) {
    const cuda::OnDevice device(student);
    int size = 1;  // lanes of a location
    while (size < kLanes && size < p.classes) size *= 2;
    const unsigned blocks = cuda::blocks_for(p.batch * p.locations, kThreads / size * kRounds);
    Tensor sums = torch::stable::new_empty(student, {kCounters + int64_t{blocks}, 2}, ScalarType::Double);
    Pair* counts = static_cast<Pair*>(sums.mutable_data_ptr());
    Pair* partials = counts + kCounters;
    constexpr size_t kShared = kLanes * sizeof(double);
    cuda::launch(count_kernel<A>, kCounters, kThreads, kShared, device.stream, p, counts);
    cuda::launch(loss_kernel<A>, blocks, kThreads, kShared, device.stream, p, size,
                 static_cast<const Pair*>(counts), partials);
    cuda::launch(finish_kernel<A>, 1, kThreads, kShared, device.stream, p, static_cast<const Pair*>(counts),
                 static_cast<const Pair*>(partials), int64_t{blocks});
  }
};

}  // namespace
}  // namespace bevkd2::distill::prediction

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::distill::prediction;
  Ops<Cuda>::register_all(m);
}
