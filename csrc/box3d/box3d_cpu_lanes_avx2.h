// Four pairs of boxes at a time: one number of each. Included inside a namespace by box3d_cpu.cpp.

struct Mask {
  __m256d v;
};

struct Lanes {
  __m256d v;

  Lanes() = default;
  Lanes(__m256d value) : v(value) {}
  explicit Lanes(double value) : v(_mm256_set1_pd(value)) {}

  Lanes operator-() const { return _mm256_xor_pd(v, _mm256_set1_pd(-0.0)); }
};

// Not friends inside the structs: GCC 12 compiles those without the target of the region.
inline Mask operator|(Mask a, Mask b) { return {_mm256_or_pd(a.v, b.v)}; }
inline Lanes operator+(Lanes a, Lanes b) { return _mm256_add_pd(a.v, b.v); }
inline Lanes operator-(Lanes a, Lanes b) { return _mm256_sub_pd(a.v, b.v); }
inline Lanes operator*(Lanes a, Lanes b) { return _mm256_mul_pd(a.v, b.v); }
inline Lanes operator/(Lanes a, Lanes b) { return _mm256_div_pd(a.v, b.v); }
inline Mask operator==(Lanes a, Lanes b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask operator>(Lanes a, Lanes b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask operator>=(Lanes a, Lanes b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator<=(Lanes a, Lanes b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ)}; }

// The instructions return their second operand where neither is smaller (or one is NaN), as the functions of
// doubles return their first.
inline Lanes smaller(Lanes a, Lanes b) { return _mm256_min_pd(b.v, a.v); }
inline Lanes larger(Lanes a, Lanes b) { return _mm256_max_pd(b.v, a.v); }
inline Lanes magnitude(Lanes a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
inline Lanes choose(Mask condition, Lanes a, Lanes b) { return _mm256_blendv_pd(b.v, a.v, condition.v); }

inline Lanes load(const double* from) { return _mm256_loadu_pd(from); }
// Four loads: faster than the gather instruction, whose cost differs much between CPUs.
inline Lanes gather(const double* from, const int32_t* at) {
  return _mm256_set_pd(from[at[3]], from[at[2]], from[at[1]], from[at[0]]);
}
inline void store(double* to, Lanes a) { _mm256_storeu_pd(to, a.v); }

// Bit i: lane i.
inline unsigned bits(Mask mask) { return static_cast<unsigned>(_mm256_movemask_pd(mask.v)); }
