// The launches of the two CUDA files of deformable attention, and how channels are distributed over lanes.
#pragma once

#include <algorithm>
#include <limits>

#include "ms_deform_attn.h"
#include "ms_deform_attn_cuda_device.cuh"

namespace bevkd2::msda {

template <typename T>
void cuda_forward(const Arguments& a, T* out, accumulate_t<T>* weights);

template <typename T>
void cuda_backward(const Arguments& a, const Gradients<T>& g);

inline LevelTable make_table(const std::vector<Level>& levels) {
  STD_TORCH_CHECK(levels.size() <= kMaxLevels, "ms_deform_attn: at most ", kMaxLevels, " levels on CUDA");
  LevelTable table{};
  std::copy(levels.begin(), levels.end(), table.level);
  return table;
}

// Calls function(Channels, lanes) with packs of sixteen bytes where width and addresses allow.
template <typename T, typename F>
void with_channels(const Problem<T>& p, const void* other, const F& function) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(p.pixel_stride() <= kMost / 8, "ms_deform_attn: heads * width must be below 2^28 on CUDA");
  STD_TORCH_CHECK(p.points == 0 || p.samples() <= kMost / p.points,
                  "ms_deform_attn: levels * points^2 must be below 2^31 on CUDA");
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  const bool vector = p.width % cuda::Pack<T>::kSize == 0 && aligned(p.value) && aligned(other);
  const int packs = vector ? p.width / cuda::Pack<T>::kSize : p.width;
  int group = 1;
  while (group < kLanes && group < packs) group *= 2;
  const Lanes lanes{packs, group, static_cast<unsigned>(p.pixel_stride() * sizeof(T)),
                    Quotient(std::max(1, p.points)), Quotient(std::max(1, p.rule.count))};
  if (vector)
    function(Channels<T, true>{}, lanes);
  else
    function(Channels<T, false>{}, lanes);
}

}  // namespace bevkd2::msda
