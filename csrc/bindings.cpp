// The schemas of all ops. The kernels are registered per device (<op>_cpu.cpp, <op>_cuda.cu); autograd
// formulas and fake kernels are Python, in bevkd2/ops.
#include <torch/csrc/stable/library.h>

// One more expansion than torch 2.10's macro makes of its argument: tests/cuda_emulation renames bevkd2.
#define BEVKD2_SCHEMAS(name, m) STABLE_TORCH_LIBRARY(name, m)

BEVKD2_SCHEMAS(bevkd2, m) {
  // spatial_shapes is h0, w0, h1, w1, ...; level_start_index the first row of each level in value.
  // A gradient that is not wanted is returned as an empty tensor of one dimension. `deterministic` makes
  // value's gradient bitwise the same in every run; on the CPU it always is.
  m.def(
      "ms_deform_attn(Tensor value, int[] spatial_shapes, int[] level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_out, "
      "Tensor value, int[] spatial_shapes, int[] level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights, "
      "bool need_value, bool need_locations, bool need_weights, bool deterministic) "
      "-> (Tensor, Tensor, Tensor)");
  // The output is the mean over the `queues` consecutive batch entries of a sample.
  m.def(
      "ms_deform_attn_fused(Tensor value, int[] spatial_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
      "bool pillar, int queues, bool return_weights) -> (Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_out, Tensor? grad_weights, "
      "Tensor value, int[] spatial_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
      "bool pillar, int queues, "
      "bool need_value, bool need_references, bool need_offsets, bool need_logits, "
      "bool deterministic) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_ragged(Tensor value, int[] spatial_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
      "Tensor row_splits, Tensor row_value, bool return_weights) -> (Tensor, Tensor)");
  m.def(
      "ms_deform_attn_ragged_backward(Tensor grad_out, Tensor? grad_weights, "
      "Tensor value, int[] spatial_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
      "Tensor row_splits, Tensor row_value, "
      "bool need_value, bool need_references, bool need_offsets, bool need_logits, "
      "bool deterministic) "
      "-> (Tensor, Tensor, Tensor, Tensor)");

  // Planar boxes are (N, 5) x, y, length, width, angle; 3D ones (N, 7) x, y, z, length, width, height, yaw.
  m.def("rotated_intersection(Tensor a, Tensor b) -> Tensor");
  m.def("rotated_iou(Tensor a, Tensor b) -> Tensor");
  m.def("box3d_iou(Tensor a, Tensor b) -> Tensor");
  m.def(
      "rotated_nms(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold, bool inclusive) "
      "-> Tensor");

  // BEV responses. Embeddings are (B, N, C); weights (B, N); reduction 0 sum, 1 cell, 2 norm. Returns the
  // loss and, for its backward op, differences (B, N) and scales (B), which have no samples without
  // need_grad.
  m.def(
      "bev_response_l2(Tensor student, Tensor teacher, Tensor? weights, int reduction, float factor, "
      "bool need_grad) -> (Tensor, Tensor, Tensor)");
  m.def(
      "bev_response_l2_backward(Tensor grad_loss, Tensor student, Tensor differences, Tensor scales) "
      "-> Tensor");

  // Means of |x|^power (1 or 2) of features (B, C, P) over the channels (B, P) and over the pixels (B, C). A
  // mean without a gradient has none in the backward ops; the second adds to a gradient of the features.
  m.def("absolute_means(Tensor features, int power) -> (Tensor, Tensor)");
  m.def(
      "absolute_means_backward(Tensor? grad_pixels, Tensor? grad_channels, Tensor features, int power) "
      "-> Tensor");
  m.def(
      "add_absolute_means_gradient_(Tensor(a!) gradient, Tensor? grad_pixels, Tensor? grad_channels, "
      "Tensor features, int power) -> ()");

  // Class predictions. Logits are (B, Q, K); weights, objects and guidance (B, Q); distance 0 probabilities,
  // 1 logits, 2 Bernoulli KL, 3 softmax KL. Returns the losses of objects and of the background (2), and the
  // gradients of the student's logits and of the guidance; one that is not wanted is empty.
  m.def(
      "prediction_loss(Tensor student, Tensor teacher, Tensor? weights, Tensor? objects, Tensor? guidance, "
      "int distance, float temperature, float object_weight, float background_weight, "
      "bool need_logits, bool need_guidance) -> (Tensor, Tensor, Tensor)");
  m.def(
      "prediction_loss_backward(Tensor grad_losses, Tensor student, Tensor teacher, Tensor? weights, "
      "Tensor? objects, Tensor? guidance, int distance, float temperature, float object_weight, "
      "float background_weight, bool need_logits, bool need_guidance) -> (Tensor, Tensor)");

  // KL of softmaxes. Levels are (B, R, K), R softmaxes over K entries per sample; weights (B, R) or empty;
  // totals (L), the losses' normalisers, B * R without. Losses are (L); without need_grad no gradients.
  m.def(
      "softmax_kl(Tensor[] student, Tensor[] teacher, Tensor[] weights, Tensor? totals, float factor, "
      "float temperature, bool need_grad) -> (Tensor, Tensor[])");
  m.def(
      "softmax_kl_backward(Tensor grad_losses, Tensor[] student, Tensor[] teacher, Tensor[] weights, "
      "Tensor? totals, float factor, float temperature) -> Tensor[]");

  // Squared distance of levels (B, C, P) whose channels are normalised over batch and pixels. Losses are (L);
  // without need_grad no gradients.
  m.def(
      "normalized_l2(Tensor[] student, Tensor[] teacher, float factor, float epsilon, bool need_grad) "
      "-> (Tensor, Tensor[])");
  m.def(
      "normalized_l2_backward(Tensor grad_losses, Tensor[] student, Tensor[] teacher, float factor, "
      "float epsilon) -> Tensor[]");

  // Weighted squared distance of levels (B, C, P). pixel_weights are (B, P), channel_weights (B, C), an
  // absent one empty; scale is (L, B). Gradients are returned only with need_grad.
  m.def(
      "weighted_l2(Tensor[] student, Tensor[] teacher, Tensor[] pixel_weights, Tensor[] channel_weights, "
      "Tensor scale, bool norm, bool need_grad) -> (Tensor, Tensor, Tensor[])");
  m.def(
      "weighted_l2_backward(Tensor[] student, Tensor[] teacher, Tensor[] pixel_weights, "
      "Tensor[] channel_weights, Tensor factor) -> Tensor[]");

  // Weights of the cells of all levels: (B, cells), their sums (L, B), and the cells in the image (L, B).
  // shapes is h0, w0, ...; geometry left, top, step_x, step_y of each level; perspective amplitude, sigma_x,
  // sigma_y, center_x, center_y, or nothing; boxes (N, 5) and splits (B + 1) of each mask.
  m.def(
      "draw_weights(Tensor? image_sizes, int batch, int[] shapes, float[] geometry, float[] perspective, "
      "Tensor[] boxes, Tensor[] splits, int[] kinds, float[] parameters) -> (Tensor, Tensor, Tensor)");

  // CUDA only: gradients of levels times factors (L) in float64, in place.
  m.def("scale_gradients_(Tensor(a!)[] gradients, Tensor factors) -> ()");
}
