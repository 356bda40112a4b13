// Sixteen floats in an AVX-512 register; members as in vec_plain.h, which says what they do, and of these
// only what kernels with AVX-512 use. Included by cpu_dispatch.h.
#pragma once

BEVKD2_BEGIN_AVX512
namespace bevkd2::avx512 {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename A>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int size = 16;
  __m512 v;

  struct Mask {
    __mmask16 v;
    Mask operator&(const Mask& o) const { return {static_cast<__mmask16>(v & o.v)}; }
  };

  static __mmask16 first(int n) { return static_cast<__mmask16>((1U << n) - 1U); }
  static Vec of(const __m256i& half, const Half*) { return {_mm512_cvtph_ps(half)}; }
  static Vec of(const __m256i& half, const BFloat16*) {  // bfloat16 is the upper half of a float
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  __m256i as(const Half*) const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  __m256i as(const BFloat16*) const {  // round to nearest even, by half of the last place that stays
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i chosen = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
  }

  static Vec set1(float a) { return {_mm512_set1_ps(a)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  template <typename T>
  static Vec load(const T* p) {
    return of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p);
  }
  static Vec load_part(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  template <typename T>
  static Vec load_part(const T* p, int n) {
    return of(_mm256_maskz_loadu_epi16(first(n), p), p);
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  template <typename T>
  void store(T* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), as(p));
  }
  void store_part(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  template <typename T>
  void store_part(T* p, int n) const {
    _mm256_mask_storeu_epi16(p, first(n), as(p));
  }
  Vec operator+(const Vec& o) const { return {_mm512_add_ps(v, o.v)}; }
  Vec operator-(const Vec& o) const { return {_mm512_sub_ps(v, o.v)}; }
  Vec operator*(const Vec& o) const { return {_mm512_mul_ps(v, o.v)}; }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(const Vec& a, const Vec& b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(const Vec& a, const Vec& b) { return {_mm512_min_ps(a.v, b.v)}; }
  Vec floor() const { return {_mm512_roundscale_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }

  // The exp of vec_avx2.h.
  Vec exp() const {
    const __m512 lowest = _mm512_set1_ps(-87.33654F), highest = _mm512_set1_ps(88.72283F);
    const __m512 x = _mm512_min_ps(highest, _mm512_max_ps(lowest, v));
    const __m512 n =
        _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504F)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), r);
    __m512 p = _mm512_set1_ps(1.0F / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F));
    const __m512i exponent =
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    const __mmask16 kept = _mm512_cmp_ps_mask(v, lowest, _CMP_NLT_UQ);  // NaN too
    return {_mm512_maskz_mul_ps(kept, p, _mm512_castsi512_ps(exponent))};
  }

  Mask operator<(const Vec& o) const { return {_mm512_cmp_ps_mask(v, o.v, _CMP_LT_OQ)}; }
  Mask operator<=(const Vec& o) const { return {_mm512_cmp_ps_mask(v, o.v, _CMP_LE_OQ)}; }
  Vec where(const Mask& m) const { return {_mm512_maskz_mov_ps(m.v, v)}; }
  static void store_mask(const Mask& m, int32_t* p) { _mm512_storeu_si512(p, _mm512_movm_epi32(m.v)); }
  static void store_pixels(const Vec& x, const Vec& y, const int32_t* start, const int32_t* width,
                           int32_t* p) {
    const __m512i row = _mm512_add_epi32(
        _mm512_loadu_si512(start), _mm512_mullo_epi32(_mm512_cvttps_epi32(y.v), _mm512_loadu_si512(width)));
    _mm512_storeu_si512(p, _mm512_add_epi32(row, _mm512_cvttps_epi32(x.v)));
  }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float highest() const { return _mm512_reduce_max_ps(v); }
  static void store_sums(const Vec& a, const Vec& b, const Vec& c, const Vec& d, float* p) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
    const __m512 quads = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
  static Vec gather(const float* p, const int32_t* index) {
    return {_mm512_i32gather_ps(_mm512_loadu_si512(index), p, 4)};
  }
  static void load_quads(const float* p, Vec& a, Vec& b, Vec& c, Vec& d) {
    const __m512 r0 = _mm512_loadu_ps(p), r1 = _mm512_loadu_ps(p + 16);
    const __m512 r2 = _mm512_loadu_ps(p + 32), r3 = _mm512_loadu_ps(p + 48);
    const __m512i ab = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const __m512i cd = _mm512_add_epi32(ab, _mm512_set1_epi32(2));
    const __m512 ab01 = _mm512_permutex2var_ps(r0, ab, r1), ab23 = _mm512_permutex2var_ps(r2, ab, r3);
    const __m512 cd01 = _mm512_permutex2var_ps(r0, cd, r1), cd23 = _mm512_permutex2var_ps(r2, cd, r3);
    a.v = _mm512_shuffle_f32x4(ab01, ab23, 0x44);
    b.v = _mm512_shuffle_f32x4(ab01, ab23, 0xEE);
    c.v = _mm512_shuffle_f32x4(cd01, cd23, 0x44);
    d.v = _mm512_shuffle_f32x4(cd01, cd23, 0xEE);
  }
  static void load_pairs(const float* p, Vec& x, Vec& y) {
    const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    x.v = _mm512_permutex2var_ps(a, even, b);
    y.v = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
  }
  static void store_pairs(const Vec& x, const Vec& y, float* p) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    _mm512_storeu_ps(p, _mm512_permutex2var_ps(x.v, low, y.v));
    _mm512_storeu_ps(p + 16, _mm512_permutex2var_ps(x.v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), y.v));
  }
};

}  // namespace bevkd2::avx512
BEVKD2_END_AVX512
