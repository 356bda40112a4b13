// The dtypes that ops take, the type that they accumulate in, and the dispatch from one to the other.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>
#include <vector>

namespace bevkd2 {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// The type that sums and intermediate values have: double where an input is double, else float.
template <typename S, typename T = S>
using accumulate_t =
    std::conditional_t<std::is_same_v<S, double> || std::is_same_v<T, double>, double, float>;

inline ScalarType accumulate_dtype(ScalarType a, ScalarType b = ScalarType::Float) {
  return a == ScalarType::Double || b == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Bytes of one number of a floating dtype.
inline int64_t bytes_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : (dtype == ScalarType::Float ? 4 : 2);
}

// Calls function(T{}) with the C++ type of a floating dtype. `what` names the tensor in the error.
template <typename F>
auto dispatch(const char* what, ScalarType dtype, const F& function) {
  switch (dtype) {
    case ScalarType::Double:
      return function(double{});
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Half:
      return function(Half{});
    case ScalarType::BFloat16:
      return function(BFloat16{});
    default:
      STD_TORCH_CHECK(false, what, " must be float64, float32, float16 or bfloat16; convert it");
  }
}

// Calls function(A{}) with the C++ type of a dtype that accumulate_dtype returned.
template <typename F>
auto dispatch_accumulate(ScalarType dtype, const F& function) {
  if (dtype == ScalarType::Double) return function(double{});
  return function(float{});
}

}  // namespace bevkd2
