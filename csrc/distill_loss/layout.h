// Three-dimensional views whose last or middle dimension is adjacent in memory.
#pragma once

#include <optional>

#include "../core/dispatch.h"
#include "../core/macros.h"

namespace bevkd2::distill {

// A pointer and its strides in elements.
template <typename T>
struct Strided {
  T* data;
  int64_t stride[3];
  ScalarType dtype;
  BEVKD2_HOST_DEVICE int64_t at(int64_t i, int64_t j, int64_t k) const {
    return i * stride[0] + j * stride[1] + k * stride[2];
  }
};

inline Strided<const void> strided(const Tensor& t) {
  return {t.const_data_ptr(), {t.stride(0), t.stride(1), t.stride(2)}, t.scalar_type()};
}

inline Strided<void> strided_output(const Tensor& t) {
  return {t.mutable_data_ptr(), {t.stride(0), t.stride(1), t.stride(2)}, t.scalar_type()};
}

// Whether a dimension has that stride; one of size 1 or 0 has any.
inline bool has_stride(const Tensor& t, int64_t dim, int64_t stride) {
  return t.size(dim) <= 1 || t.stride(dim) == stride;
}

inline bool adjacent(const Tensor& t, int64_t dim) { return has_stride(t, dim, 1); }

// The tensor itself where dimension `last` (1 or 2) is adjacent, else a copy in which it is.
inline Tensor arranged(const Tensor& t, int64_t last) {
  if (adjacent(t, last)) return t;
  if (last == 2) return torch::stable::contiguous(t);
  return torch::stable::transpose(torch::stable::contiguous(torch::stable::transpose(t, 1, 2)), 1, 2);
}

// An output that kernels write with dimension `last` adjacent; finish() copies it into the strides of `out`.
struct Writing {
  Tensor result, target;
  Writing(const Tensor& out, int64_t last) : result(out), target(arranged(out, last)) {}
  Tensor finish() {
    if (target.const_data_ptr() != result.const_data_ptr()) torch::stable::copy_(result, target);
    return result;
  }
};

inline bool together(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// The data of `count` numbers of a dtype, after a check that they are on the device of `beside`.
inline const void* data_of(const char* op, const char* name, const Tensor& t, int64_t count, ScalarType dtype,
                           const Tensor& beside) {
  STD_TORCH_CHECK(t.is_contiguous() && t.numel() == count && t.scalar_type() == dtype && together(t, beside),
                  op, ": ", name, " must be contiguous, ", count,
                  " numbers of the accumulation dtype (bool for a mask), on the student's device");
  return t.const_data_ptr();
}

// The same; null where the tensor is absent.
inline const void* data_of(const char* op, const char* name, const std::optional<Tensor>& t, int64_t count,
                           ScalarType dtype, const Tensor& beside) {
  return t ? data_of(op, name, *t, count, dtype, beside) : nullptr;
}

// Checks that both are on one device, in dtypes that `computing` can hold.
inline void check_placed(const char* op, const Tensor& student, const Tensor& teacher, ScalarType computing) {
  for (const auto* t : {&student, &teacher}) {
    const ScalarType dtype = t->scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half ||
                        dtype == ScalarType::BFloat16 ||
                        (dtype == ScalarType::Double && computing == ScalarType::Double),
                    op, ": features must be floating, and no wider than the accumulation dtype");
  }
  STD_TORCH_CHECK(together(student, teacher), op, ": student and teacher must be on one device");
}

}  // namespace bevkd2::distill
