// KITTI's object detection score: matching and precision over recall, for all images at once.
//
// The rules are those of the official development kit (evaluate_object), its corners included; each that
// surprises is named where it is applied. Objects arrive as the columns of their files;
// bevkd2/kitti/ap.py reads, checks and presents. No torch here: pybind11 over numpy.
//
// What makes it quick: a detection matters to a ground truth object only where they overlap by more than the
// minimum, and those pairs are few. They are found once for a class and a metric (pairs.h); the 42 matchings
// of each difficulty (matching.h) look at nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "matching.h"

namespace py = pybind11;

namespace bevkd2::kitti {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// The columns of a label or detection file, without the type.
constexpr py::ssize_t kLabelColumns = 14;

Objects read_objects(const Array<int>& types, const Array<double>& columns, const Array<bool>& ignored,
                     const Array<int64_t>& splits, bool scored) {
  const py::ssize_t n = types.size();
  const bool fits = types.ndim() == 1 && ignored.ndim() == 1 && ignored.size() == n && columns.ndim() == 2 &&
                    columns.shape(0) == n && columns.shape(1) == kLabelColumns + scored &&
                    splits.ndim() == 1 && splits.size() > 0;
  if (!fits) throw std::invalid_argument("kitti_eval: the arrays of the objects do not fit together");
  Objects objects;
  objects.splits.assign(splits.data(), splits.data() + splits.size());
  const auto& ends = objects.splits;
  if (ends.front() != 0 || ends.back() != n || !std::is_sorted(ends.begin(), ends.end()))
    throw std::invalid_argument("kitti_eval: splits must rise from 0 to the number of objects");
  objects.rows.reserve(n);
  for (py::ssize_t i = 0; i < n; ++i) {
    const double* c = columns.data(i, 0);  // truncated occluded alpha x1 y1 x2 y2 h w l x y z ry [score]
    objects.rows.push_back({types.data()[i], ignored.data()[i], c[0], c[1], c[2], c[3], c[4], c[5], c[6],
                            footprint_of(c[10], c[12], c[9], c[8], c[13]), c[7], c[11], scored ? c[14] : 0});
  }
  return objects;
}

py::dict as_dict(const Curve& curve) {
  py::dict out;
  out["n_gt"] = curve.n_gt;
  out["thresholds"] = curve.thresholds;
  out["tp"] = curve.tp;
  out["fp"] = curve.fp;
  out["fn"] = curve.fn;
  out["recall"] = curve.recall;
  out["precision"] = curve.precision;
  out["similarity"] = curve.similarity;
  out["aos"] = curve.aos;
  return out;
}

// One curve a difficulty, easy to hard.
py::list curves(const Objects& truths, const Objects& dets, int type, int neighbour, int dont_care,
                int metric, double min_overlap) {
  if (truths.splits.size() != dets.splits.size())
    throw std::invalid_argument("kitti_eval: ground truth and detections are of different numbers of images");
  if (metric < 0 || metric > 2) throw std::invalid_argument("kitti_eval: metric must be 0, 1 or 2");
  const Class cls{type, neighbour, dont_care};
  std::vector<Curve> found;
  {
    py::gil_scoped_release release;
    const Pairs pairs = find_pairs(truths, dets, cls, static_cast<Metric>(metric), min_overlap);
    for (const Difficulty& difficulty : kDifficulties)
      found.push_back(make_curve(Matching(truths, dets, cls, pairs, difficulty)));
  }
  py::list out;
  for (const Curve& curve : found) out.append(as_dict(curve));
  return out;
}

}  // namespace
}  // namespace bevkd2::kitti

PYBIND11_MODULE(_kitti_eval, m) {
  using namespace bevkd2::kitti;
  m.doc() = "KITTI's matching and precision over recall; bevkd2.kitti.ap is the way in.";
  py::class_<Objects>(m, "Objects")
      .def(py::init(&read_objects), py::arg("types"), py::arg("columns"), py::arg("ignored"),
           py::arg("splits"), py::arg("scored"));
  m.def("curves", &curves, py::arg("truths"), py::arg("detections"), py::arg("type"), py::arg("neighbour"),
        py::arg("dont_care"), py::arg("metric"), py::arg("min_overlap"));
}
