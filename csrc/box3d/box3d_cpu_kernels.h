// The CPU kernels over Lanes, compiled once for each instruction set: included inside a namespace by
// box3d_cpu.cpp. A first pass over all columns compares circles and keeps the few that may overlap; the
// second computes those, kLanes at a time.

inline Rectangle<Lanes> everywhere(const box3d::Rectangle<double>& a) {
  return {Lanes(a.x), Lanes(a.y), Lanes(a.half_length), Lanes(a.half_width), Lanes(a.cos), Lanes(a.sin)};
}

inline Rectangle<Lanes> gather(const Footprints& boxes, const int32_t* at) {
  return {gather(boxes.x(), at),          gather(boxes.y(), at),   gather(boxes.half_length(), at),
          gather(boxes.half_width(), at), gather(boxes.cos(), at), gather(boxes.sin(), at)};
}

// Numbers of columns, padded to whole vectors with the last one.
struct Near {
  int32_t at[kTile + kLanes];
  int count = 0;

  void pad() {
    for (int i = 0; count > 0 && i < kLanes; ++i) at[count + i] = at[count - 1];
  }
};

// Columns of [begin, end) whose circles meet the row's, and that are wanted.
template <typename Wanted>
inline void find_near(const Footprint& row, const Footprints& columns, int64_t begin, int64_t end,
                      const Wanted& wanted, Near* near) {
  const Lanes x(row.rectangle.x), y(row.rectangle.y), reach(row.reach);
  for (int64_t j = begin; j < end; j += kLanes) {
    const Lanes dx = load(columns.x() + j) - x, dy = load(columns.y() + j) - y;
    const Lanes both = load(columns.reach() + j) + reach;
    unsigned met = bits(dx * dx + dy * dy <= both * both);
    for (int64_t k = j; met != 0; ++k, met >>= 1)
      if ((met & 1) && k < end && wanted(k)) near->at[near->count++] = static_cast<int32_t>(k);
  }
  near->pad();
}

template <Overlap kOverlap>
inline Lanes measure(const Footprint& row, const Footprints& columns, const int32_t* at) {
  const Rectangle<Lanes> a = everywhere(row.rectangle), b = gather(columns, at);
  if constexpr (kOverlap == Overlap::kVolumeIou)
    return volume_iou(a, Lanes(row.low), Lanes(row.high), b, gather(columns.low(), at),
                      gather(columns.high(), at));
  const Lanes shared = intersection_area(a, b);
  return kOverlap == Overlap::kArea ? shared : intersection_over_union(shared, a.area(), b.area());
}

template <Overlap kOverlap>
inline void fill_overlaps(const Footprint& row, const Footprints& columns, int64_t begin, int64_t end,
                          double* out) {
  Near near;
  find_near(row, columns, begin, end, [](int64_t) { return true; }, &near);
  for (int64_t j = begin; j < end; ++j) out[j] = 0;
  for (int i = 0; i < near.count; i += kLanes) {
    double values[kLanes];
    store(values, measure<kOverlap>(row, columns, near.at + i));
    for (int k = 0; k < kLanes; ++k) out[near.at[i + k]] = values[k];
  }
}

inline void overlaps(Overlap overlap, const Footprint& row, const Footprints& columns, int64_t begin,
                     int64_t end, double* out) {
  if (overlap == Overlap::kArea) return fill_overlaps<Overlap::kArea>(row, columns, begin, end, out);
  if (overlap == Overlap::kIou) return fill_overlaps<Overlap::kIou>(row, columns, begin, end, out);
  fill_overlaps<Overlap::kVolumeIou>(row, columns, begin, end, out);
}

inline void suppress(const Rule& rule, const Footprint& row, int64_t label, const Footprints& columns,
                     const int64_t* labels, int64_t begin, int64_t end, uint8_t* gone) {
  Near near;
  find_near(row, columns, begin, end, [&](int64_t j) { return !gone[j] && labels[j] == label; }, &near);
  const Lanes threshold(rule.threshold);
  for (int i = 0; i < near.count; i += kLanes) {
    const Lanes iou = measure<Overlap::kIou>(row, columns, near.at + i);
    const unsigned over = rule.inclusive ? bits(iou >= threshold) : bits(iou > threshold);
    for (int k = 0; k < kLanes; ++k) gone[near.at[i + k]] |= (over >> k) & 1;
  }
}
