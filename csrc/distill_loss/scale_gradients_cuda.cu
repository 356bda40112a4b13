// Multiplies gradients that a forward pass wrote by the upstream gradient, which stays on the device. All
// levels are one launch. Blocks whose factor is 1 return at once: the usual case, since a loss's weight is
// part of the saved gradient.
#include <algorithm>

#include "../core/cuda.cuh"
#include "../core/dispatch.h"

namespace bevkd2::distill {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;  // entries per block
constexpr int kMaxLevels = 64;    // per launch

struct ScaleTable {
  void* gradient[kMaxLevels];
  int64_t entries[kMaxLevels];
  int64_t first[kMaxLevels];  // block of each level
};

template <typename S>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const __grid_constant__ ScaleTable table, int levels, const double* factors) {
  using A = accumulate_t<S, S>;
  constexpr int kSize = cuda::Pack<S>::kSize;
  int l = 0;
  while (l + 1 < levels && static_cast<int64_t>(blockIdx.x) >= table.first[l + 1]) ++l;
  const A factor = static_cast<A>(factors[l]);
  if (factor == A(1)) return;
  S* gradient = static_cast<S*>(table.gradient[l]);
  const int64_t begin = (blockIdx.x - table.first[l]) * kChunk;
  const int64_t end = begin + kChunk < table.entries[l] ? begin + kChunk : table.entries[l];
  for (int64_t i = begin + int64_t{threadIdx.x} * kSize; i < end; i += kThreads * kSize) {
    if (i + kSize <= end) {
      cuda::Pack<S> pack = *reinterpret_cast<const cuda::Pack<S>*>(gradient + i);
#pragma unroll
      for (int k = 0; k < kSize; ++k) pack.item[k] = static_cast<S>(static_cast<A>(pack.item[k]) * factor);
      cuda::store16(gradient + i, pack);
    } else {
      for (int64_t k = i; k < end; ++k) gradient[k] = static_cast<S>(static_cast<A>(gradient[k]) * factor);
    }
  }
}

void check(const Tensors& gradients, const Tensor& factors) {
  STD_TORCH_CHECK(factors.dim() == 1 && factors.size(0) == static_cast<int64_t>(gradients.size()) &&
                      factors.is_contiguous() && factors.scalar_type() == ScalarType::Double,
                  "scale_gradients_: factors must be contiguous float64 (levels)");
  for (const Tensor& gradient : gradients) {
    STD_TORCH_CHECK(gradient.scalar_type() == gradients[0].scalar_type(),
                    "scale_gradients_: all gradients must be of one dtype");
    // As the loss ops allocate them.
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(gradient.const_data_ptr()) % 16 == 0,
                    "scale_gradients_: gradients must be aligned to 16 bytes");
  }
}

// Gradients are dense, in any order of their dimensions.
void scale_gradients(Tensors gradients, Tensor factors) {
  if (gradients.empty()) return;
  check(gradients, factors);
  const cuda::OnDevice device(factors);
  const double* factor = static_cast<const double*>(factors.const_data_ptr());
  for (size_t begin = 0; begin < gradients.size(); begin += kMaxLevels) {
    ScaleTable table{};
    const int levels = static_cast<int>(std::min<size_t>(kMaxLevels, gradients.size() - begin));
    int64_t blocks = 0;
    for (int l = 0; l < levels; ++l) {
      const Tensor& gradient = gradients[begin + l];
      table.gradient[l] = gradient.mutable_data_ptr();
      table.entries[l] = gradient.numel();
      table.first[l] = blocks;
      blocks += cuda::blocks_for(gradient.numel(), kChunk);
    }
    dispatch("scale_gradients_: gradients", gradients[0].scalar_type(), [&](auto tag) {
      cuda::launch(scale_kernel<decltype(tag)>, cuda::blocks_for(blocks, 1), kThreads, 0, device.stream,
                   table, levels, factor + begin);
    });
  }
}

}  // namespace
}  // namespace bevkd2::distill

BEVKD2_CUDA_LIBRARY(m) { m.impl("scale_gradients_", TORCH_BOX(&bevkd2::distill::scale_gradients)); }
