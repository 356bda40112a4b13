// The intersection area of two rectangles, over L: a double, or a vector of several. Included inside a
// namespace, once for each L's compiler flags, after L's arithmetic, smaller, larger, magnitude and choose.
// No branch, no array: the same instructions for every pair.
//
// With the first rectangle's frame as axes, its lower and upper edges are y = low, y = high and the area is
//   the integral over x in [-half_length, half_length] of  clamp(upper(x)) - clamp(lower(x))
// where upper and lower are the outline of the second and clamp is to [low, high]. By edges it is
// -sum of the integral of clamp(y(x)) dx along the outline, counter-clockwise (Green's theorem).
//
// Accuracy: the difference of the centres comes first, so a far origin costs nothing. Ends of edges are
// clipped in x without arithmetic, so what the edges run over cancels to the last bits, and y is measured
// from the point of the first rectangle's height that is nearest to the second's centre: errors are of the
// size of the overlap, not of the rectangles. Rectangles that are apart give exactly 0, identical ones
// exactly their area.

template <typename L>
struct Rectangle {
  L x, y;                     // centre
  L half_length, half_width;  // >= 0; the length lies along the angle
  L cos, sin;                 // of the angle

  BEVKD2_HOST_DEVICE L area() const { return (half_length + half_length) * (half_width + half_width); }
};

template <typename L>
BEVKD2_HOST_DEVICE L clamped(L value, L low, L high) {
  return smaller(larger(value, low), high);
}

// The outline's direction in the first frame: slope dy/dx, inverse dx/dy, both finite.
template <typename L>
struct Direction {
  L slope, inverse;
};

// An infinite slope belongs to an edge with no extent in x (or y). Any finite slope gives the same result, if
// its product with the differences of coordinates is finite.
template <typename L>
BEVKD2_HOST_DEVICE L finite_ratio(L a, L b) {
  return clamped(a / b, L(-1e150), L(1e150));
}

template <typename L>
struct Corner {
  L x, y, clipped_x;
};

// Twice the integral of clamp(y(x)) dx along the edge. Over the run, the clamped y rises linearly between
// what is cut off at either end; the parts cut off are the overshoots of y times dx/dy.
template <typename L>
BEVKD2_HOST_DEVICE L twice_under(const Corner<L>& p, const Corner<L>& q, const Direction<L>& along, L low,
                                 L high) {
  const L y_p = p.y + (p.clipped_x - p.x) * along.slope, y_q = q.y + (q.clipped_x - q.x) * along.slope;
  const L z_p = clamped(y_p, low, high), z_q = clamped(y_q, low, high);
  const L run = q.clipped_x - p.clipped_x, reach = magnitude(run);
  const L cut = clamped(((y_q - z_q) - (z_p - y_p)) * along.inverse, -reach, reach);
  return run * (z_p + z_q) + cut * (z_q - z_p);
}

template <typename L>
BEVKD2_HOST_DEVICE L intersection_area(const Rectangle<L>& a, const Rectangle<L>& b) {
  const L zero(0), one(1);
  const L sin = b.sin * a.cos - b.cos * a.sin;
  L cos = b.cos * a.cos + b.sin * a.sin;
  cos = choose(sin == zero, choose(cos > zero, one, -one), cos);  // parallel: rounding would change sizes
  const L dx = b.x - a.x, dy = b.y - a.y;
  const L x = a.cos * dx + a.sin * dy, y = a.cos * dy - a.sin * dx;  // b's centre in a's frame

  // Rectangles are apart where one of their four axes separates them.
  const L abs_cos = magnitude(cos), abs_sin = magnitude(sin);
  const auto apart = (magnitude(x) >= a.half_length + (abs_cos * b.half_length + abs_sin * b.half_width)) |
                     (magnitude(y) >= a.half_width + (abs_sin * b.half_length + abs_cos * b.half_width)) |
                     (magnitude(b.cos * dx + b.sin * dy) >=
                      b.half_length + (abs_cos * a.half_length + abs_sin * a.half_width)) |
                     (magnitude(b.cos * dy - b.sin * dx) >=
                      b.half_width + (abs_sin * a.half_length + abs_cos * a.half_width));

  const L origin = clamped(y, -a.half_width, a.half_width);
  const L low = -a.half_width - origin, high = a.half_width - origin;
  const L along_x = b.half_length * cos, along_y = b.half_length * sin;
  const L across_x = -(b.half_width * sin), across_y = b.half_width * cos;
  const auto corner = [&](L right, L up) {
    const L corner_x = x + right;
    return Corner<L>{corner_x, (y - origin) + up, clamped(corner_x, -a.half_length, a.half_length)};
  };
  const Corner<L> c0 = corner(along_x + across_x, along_y + across_y);
  const Corner<L> c1 = corner(across_x - along_x, across_y - along_y);
  const Corner<L> c2 = corner(-along_x - across_x, -along_y - across_y);
  const Corner<L> c3 = corner(along_x - across_x, along_y - across_y);
  const Direction<L> along{finite_ratio(sin, cos), finite_ratio(cos, sin)};
  const Direction<L> across{-along.inverse, -along.slope};
  const L twice = (twice_under(c0, c1, along, low, high) + twice_under(c2, c3, along, low, high)) +
                  (twice_under(c1, c2, across, low, high) + twice_under(c3, c0, across, low, high));
  const L area = clamped(L(-0.5) * twice, zero, smaller(a.area(), b.area()));
  return choose(apart, zero, area);
}

template <typename L>
BEVKD2_HOST_DEVICE L intersection_over_union(L shared, L a, L b) {
  const L united = a + b - shared;
  return choose(united > L(0), shared / united, L(0));
}

template <typename L>
BEVKD2_HOST_DEVICE L interval_overlap(L low_a, L high_a, L low_b, L high_b) {
  return larger(smaller(high_a, high_b) - larger(low_a, low_b), L(0));
}

// Of two volumes: rectangles with heights from low to high.
template <typename L>
BEVKD2_HOST_DEVICE L volume_iou(const Rectangle<L>& a, L low_a, L high_a, const Rectangle<L>& b, L low_b,
                                L high_b) {
  const L shared = interval_overlap(low_a, high_a, low_b, high_b) * intersection_area(a, b);
  return intersection_over_union(shared, a.area() * (high_a - low_a), b.area() * (high_b - low_b));
}
