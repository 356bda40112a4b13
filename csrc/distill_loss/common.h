// What the distillation losses share: types of student and teacher, and their dispatch.
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

namespace bevkd2::distill {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// The arithmetic's type: double where a tensor is, else float.
template <typename S, typename T>
using wide_t = std::conditional_t<std::is_same_v<S, double> || std::is_same_v<T, double>, double, float>;

inline ScalarType wide_dtype(ScalarType student, ScalarType teacher) {
  const bool wide = student == ScalarType::Double || teacher == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

// The size of a number of a dtype that distillation losses take.
inline int64_t bytes_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : (dtype == ScalarType::Float ? 4 : 2);
}

// Calls function(S{}) for the C++ type of a dtype.
template <typename F>
auto dispatch(ScalarType dtype, const F& function) {
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
      STD_TORCH_CHECK(false,
                      "distillation losses take float64, float32, float16 or bfloat16; convert the features");
  }
}

// Calls function(S{}, T{}) for the C++ types of the student's and the teacher's dtype.
template <typename F>
auto dispatch_pair(ScalarType student, ScalarType teacher, const F& function) {
  return dispatch(student, [&](auto s) { return dispatch(teacher, [&](auto t) { return function(s, t); }); });
}

}  // namespace bevkd2::distill
