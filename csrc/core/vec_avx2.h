// Eight floats in an AVX2 register; the same members as vec_plain.h, which says what they do. Included by
// cpu_dispatch.h.
#pragma once

BEVKD2_BEGIN_AVX2
namespace bevkd2::avx2 {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename A>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int size = 8;
  __m256 v;

  struct Mask {
    __m256 v;
    Mask operator&(const Mask& o) const { return {_mm256_and_ps(v, o.v)}; }
  };

  static Vec set1(float a) { return {_mm256_set1_ps(a)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const Half* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Vec load(const BFloat16* p) {  // bfloat16 is the upper half of a float
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(Half* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  void store(BFloat16* p) const {  // round to nearest even, by half of the last place that stays
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i upper =
        _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC00000), nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x88);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  template <typename T>
  static Vec load_part(const T* p, int n) {
    float part[8] = {};
    for (int i = 0; i < n; ++i) part[i] = static_cast<float>(p[i]);
    return load(part);
  }
  template <typename T>
  void store_part(T* p, int n) const {
    float part[8];
    store(part);
    for (int i = 0; i < n; ++i) p[i] = static_cast<T>(part[i]);
  }
  Vec operator+(const Vec& o) const { return {_mm256_add_ps(v, o.v)}; }
  Vec operator-(const Vec& o) const { return {_mm256_sub_ps(v, o.v)}; }
  Vec operator*(const Vec& o) const { return {_mm256_mul_ps(v, o.v)}; }
  Vec operator/(const Vec& o) const { return {_mm256_div_ps(v, o.v)}; }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(const Vec& a, const Vec& b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec min(const Vec& a, const Vec& b) { return {_mm256_min_ps(a.v, b.v)}; }
  Vec floor() const { return {_mm256_floor_ps(v)}; }

  // exp by 2^n * p(r), |r| <= ln(2) / 2, Taylor to the seventh power (relative error below 2e-7). max and min
  // return their second operand where one is NaN, so NaN stays NaN.
  Vec exp() const {
    const __m256 lowest = _mm256_set1_ps(-87.33654F), highest = _mm256_set1_ps(88.72283F);
    const __m256 x = _mm256_min_ps(highest, _mm256_max_ps(lowest, v));
    const __m256 n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504F)), _MM_FROUND_TO_NEAREST_INT);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375F), x);  // ln(2) in two pieces
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4F), r);
    __m256 p = _mm256_set1_ps(1.0F / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0F / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0F / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0F / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0F / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5F));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0F));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0F));
    const __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    const __m256 result = _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
    return {_mm256_andnot_ps(_mm256_cmp_ps(v, lowest, _CMP_LT_OQ), result)};
  }

  // log(1 + v) = 2 atanh(z), z = v / (2 + v) <= 1/3: 2 z (1 + z^2 / 3 + z^4 / 5 + ..); what is left out is
  // below 1e-8 of it.
  Vec log1p() const {
    const __m256 z = _mm256_div_ps(v, _mm256_add_ps(v, _mm256_set1_ps(2.0F)));
    const __m256 y = _mm256_mul_ps(z, z);
    __m256 p = _mm256_set1_ps(2.0F / 15);
    p = _mm256_fmadd_ps(p, y, _mm256_set1_ps(2.0F / 13));
    p = _mm256_fmadd_ps(p, y, _mm256_set1_ps(2.0F / 11));
    p = _mm256_fmadd_ps(p, y, _mm256_set1_ps(2.0F / 9));
    p = _mm256_fmadd_ps(p, y, _mm256_set1_ps(2.0F / 7));
    p = _mm256_fmadd_ps(p, y, _mm256_set1_ps(2.0F / 5));
    p = _mm256_fmadd_ps(p, y, _mm256_set1_ps(2.0F / 3));
    const __m256 twice = _mm256_add_ps(z, z);
    return {_mm256_fmadd_ps(_mm256_mul_ps(p, y), z, twice)};
  }

  Mask operator<(const Vec& o) const { return {_mm256_cmp_ps(v, o.v, _CMP_LT_OQ)}; }
  Mask operator<=(const Vec& o) const { return {_mm256_cmp_ps(v, o.v, _CMP_LE_OQ)}; }
  Vec where(const Mask& m) const { return {_mm256_and_ps(v, m.v)}; }
  static Vec select(const Mask& m, const Vec& a, const Vec& b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }
  static void store_mask(const Mask& m, int32_t* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_castps_si256(m.v));
  }
  static void store_pixels(const Vec& x, const Vec& y, const int32_t* start, const int32_t* width,
                           int32_t* p) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(width));
    const __m256i s = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start));
    const __m256i row = _mm256_add_epi32(s, _mm256_mullo_epi32(_mm256_cvttps_epi32(y.v), w));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_add_epi32(row, _mm256_cvttps_epi32(x.v)));
  }
  static __m128 halves(const __m256& a) {
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  }
  float sum() const {
    __m128 s = halves(v);
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  float highest() const {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  static void store_sums(const Vec& a, const Vec& b, const Vec& c, const Vec& d, float* p) {
    const __m256 ab = _mm256_hadd_ps(a.v, b.v), cd = _mm256_hadd_ps(c.v, d.v);
    _mm_storeu_ps(p, halves(_mm256_hadd_ps(ab, cd)));
  }
  static Vec gather(const float* p, const int32_t* index) {
    return {_mm256_i32gather_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4)};
  }
  static void load_quads(const float* p, Vec& a, Vec& b, Vec& c, Vec& d) {
    const __m256 r0 = _mm256_loadu_ps(p), r1 = _mm256_loadu_ps(p + 8);
    const __m256 r2 = _mm256_loadu_ps(p + 16), r3 = _mm256_loadu_ps(p + 24);
    const __m256 q04 = _mm256_permute2f128_ps(r0, r2, 0x20), q15 = _mm256_permute2f128_ps(r0, r2, 0x31);
    const __m256 q26 = _mm256_permute2f128_ps(r1, r3, 0x20), q37 = _mm256_permute2f128_ps(r1, r3, 0x31);
    const __m256 ab01 = _mm256_unpacklo_ps(q04, q15), ab23 = _mm256_unpacklo_ps(q26, q37);
    const __m256 cd01 = _mm256_unpackhi_ps(q04, q15), cd23 = _mm256_unpackhi_ps(q26, q37);
    a.v = _mm256_shuffle_ps(ab01, ab23, 0x44);
    b.v = _mm256_shuffle_ps(ab01, ab23, 0xEE);
    c.v = _mm256_shuffle_ps(cd01, cd23, 0x44);
    d.v = _mm256_shuffle_ps(cd01, cd23, 0xEE);
  }
  static void load_pairs(const float* p, Vec& x, Vec& y) {
    const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8);
    const __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    x.v = _mm256_shuffle_ps(low, high, 0x88);
    y.v = _mm256_shuffle_ps(low, high, 0xDD);
  }
  static void store_pairs(const Vec& x, const Vec& y, float* p) {
    const __m256 low = _mm256_unpacklo_ps(x.v, y.v), high = _mm256_unpackhi_ps(x.v, y.v);
    _mm256_storeu_ps(p, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(p + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
};

}  // namespace bevkd2::avx2
BEVKD2_END_AVX2
