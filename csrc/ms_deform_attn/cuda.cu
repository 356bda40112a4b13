// Multi-scale deformable attention on CUDA: registration. The kernels are in cuda_forward.cu and
// cuda_backward.cu; cuda_device.cuh says how they work.
#include "cuda_launch.h"

namespace {

struct Cuda {
  static constexpr bool kFillsGradients = true;

  template <typename T>
  static void forward(const bevkd2::msda::Arguments& a, T* out, bevkd2::msda::accumulate_t<T>* weights) {
    bevkd2::msda::cuda_forward(a, out, weights);
  }

  template <typename T>
  static void backward(const bevkd2::msda::Arguments& a, const bevkd2::msda::Gradients<T>& g) {
    bevkd2::msda::cuda_backward(a, g);
  }
};

}  // namespace

BEVKD2_CUDA_LIBRARY(m) { bevkd2::msda::Ops<Cuda>::register_all(m); }
