// Eight numbers at a time, in plain C++: the fallback, and the only path for double. vec_avx2.h has the same
// members. Included by cpu_dispatch.h.
#pragma once

namespace bevkd2::plain {

template <typename A>
struct Vec {
  static constexpr int size = 8;
  A v[8];

  struct Mask {
    bool v[8];
    Mask operator&(const Mask& o) const {
      Mask r;
      for (int i = 0; i < 8; ++i) r.v[i] = v[i] && o.v[i];
      return r;
    }
  };

  template <typename F>
  static Vec make(const F& f) {
    Vec r;
    for (int i = 0; i < 8; ++i) r.v[i] = f(i);
    return r;
  }
  template <typename F>
  static Mask test(const F& f) {
    Mask r;
    for (int i = 0; i < 8; ++i) r.v[i] = f(i);
    return r;
  }

  static Vec set1(A a) {
    return make([&](int) { return a; });
  }
  template <typename T>
  static Vec load(const T* p) {
    return make([&](int i) { return static_cast<A>(p[i]); });
  }
  template <typename T>
  void store(T* p) const {
    for (int i = 0; i < 8; ++i) p[i] = static_cast<T>(v[i]);
  }
  // The first n numbers at p; the rest zero.
  template <typename T>
  static Vec load_part(const T* p, int n) {
    return make([&](int i) { return i < n ? static_cast<A>(p[i]) : A(0); });
  }
  template <typename T>
  void store_part(T* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = static_cast<T>(v[i]);
  }
  Vec operator+(const Vec& o) const {
    return make([&](int i) { return v[i] + o.v[i]; });
  }
  Vec operator-(const Vec& o) const {
    return make([&](int i) { return v[i] - o.v[i]; });
  }
  Vec operator*(const Vec& o) const {
    return make([&](int i) { return v[i] * o.v[i]; });
  }
  Vec operator/(const Vec& o) const {
    return make([&](int i) { return v[i] / o.v[i]; });
  }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return make([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static Vec max(const Vec& a, const Vec& b) {
    return make([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Vec min(const Vec& a, const Vec& b) {
    return make([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  Vec floor() const {
    return make([&](int i) { return std::floor(v[i]); });
  }
  Vec exp() const {
    return make([&](int i) { return std::exp(v[i]); });
  }
  // log(1 + v), for 0 <= v <= 1.
  Vec log1p() const {
    return make([&](int i) { return std::log1p(v[i]); });
  }
  Mask operator<(const Vec& o) const {
    return test([&](int i) { return v[i] < o.v[i]; });
  }
  Mask operator<=(const Vec& o) const {
    return test([&](int i) { return v[i] <= o.v[i]; });
  }
  // The number where the mask is set, else zero.
  Vec where(const Mask& m) const {
    return make([&](int i) { return m.v[i] ? v[i] : A(0); });
  }
  static Vec select(const Mask& m, const Vec& a, const Vec& b) {
    return make([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });
  }
  static void store_mask(const Mask& m, int32_t* p) {
    for (int i = 0; i < 8; ++i) p[i] = m.v[i] ? -1 : 0;
  }
  // p[i] = start[i] + y[i] * width[i] + x[i], for whole numbers x and y.
  static void store_pixels(const Vec& x, const Vec& y, const int32_t* start, const int32_t* width,
                           int32_t* p) {
    for (int i = 0; i < 8; ++i)
      p[i] = start[i] + static_cast<int32_t>(y.v[i]) * width[i] + static_cast<int32_t>(x.v[i]);
  }
  A sum() const { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
  A highest() const {
    A r = v[0];
    for (int i = 1; i < 8; ++i) r = v[i] > r ? v[i] : r;
    return r;
  }
  // p[0..3] = sum of each.
  static void store_sums(const Vec& a, const Vec& b, const Vec& c, const Vec& d, A* p) {
    p[0] = a.sum();
    p[1] = b.sum();
    p[2] = c.sum();
    p[3] = d.sum();
  }
  // (p[index[0]], p[index[1]], ...)
  static Vec gather(const A* p, const int32_t* index) {
    return make([&](int i) { return p[index[i]]; });
  }
  // p holds a0, b0, c0, d0, a1, ...
  static void load_quads(const A* p, Vec& a, Vec& b, Vec& c, Vec& d) {
    for (int i = 0; i < 8; ++i) {
      a.v[i] = p[4 * i];
      b.v[i] = p[4 * i + 1];
      c.v[i] = p[4 * i + 2];
      d.v[i] = p[4 * i + 3];
    }
  }
  // p holds x0, y0, x1, y1, ...
  static void load_pairs(const A* p, Vec& x, Vec& y) {
    for (int i = 0; i < 8; ++i) {
      x.v[i] = p[2 * i];
      y.v[i] = p[2 * i + 1];
    }
  }
  static void store_pairs(const Vec& x, const Vec& y, A* p) {
    for (int i = 0; i < 8; ++i) {
      p[2 * i] = x.v[i];
      p[2 * i + 1] = y.v[i];
    }
  }
};

}  // namespace bevkd2::plain
