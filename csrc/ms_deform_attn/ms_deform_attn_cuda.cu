// Multi-scale deformable attention on CUDA: registration. The kernels are in ms_deform_attn_cuda_forward.cu
// and ms_deform_attn_cuda_backward.cu; ms_deform_attn_cuda_device.cuh says how they work.
#include "ms_deform_attn_cuda_launch.h"

namespace bevkd2::msda {
namespace {

struct Cuda {
  template <typename T>
  static void forward(const Arguments& a, T* out, accumulate_t<T>* weights) {
    cuda_forward(a, out, weights);
  }

  template <typename T>
  static void backward(const Arguments& a, const Gradients<T>& g) {
    cuda_backward(a, g);
  }
};

}  // namespace
}  // namespace bevkd2::msda

BEVKD2_CUDA_LIBRARY(m) {
  using namespace bevkd2::msda;
  Ops<Cuda>::register_all(m);
}
