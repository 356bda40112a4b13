"""The promises of the Distiller, on a real BEVFormer of toy size."""

import pytest
import torch

import bevkd2.modeling  # noqa: F401  (registers the meta-architectures)
from bevkd2.d2 import EventStorage
from bevkd2.distill import Distiller, student_config
from bevkd2.engine import DistillTrainer
from tests.distill.pairs import Untrained, build, train_losses

NO_DROPOUT = ("MODEL.BEVFORMER.DROPOUT", 0.0)


def test_losses_of_an_identical_student_are_zero(teacher_files, samples):
    model = build(teacher_files())
    model.student.load_state_dict(model.teacher.state_dict())
    model.train()
    for module in model.student.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    with EventStorage():
        losses = model(samples(0, 1))
    distill = {k: v.item() for k, v in losses.items() if k.startswith("loss_distill")}
    assert distill == {
        "loss_distill_temporal_attention": 0.0,
        "loss_distill_spatial_attention": 0.0,
        "loss_distill_bev_response": 0.0,
    }
    assert all(v > 0 for k, v in losses.items() if k.startswith("loss_cls"))


@pytest.mark.parametrize("shared", [True, False])
def test_teacher_and_student_get_one_grid_mask_where_it_is_shared(teacher_files, samples, shared):
    mask = ["MODEL.GRID_MASK.ENABLED", True, "MODEL.GRID_MASK.PROB", 1.0]
    model = build(teacher_files(*mask, "DISTILL.TEACHER.OPTS", mask, "DISTILL.SHARE_AUGMENTATION", shared))
    model.student.load_state_dict(model.teacher.state_dict())
    model.train()
    for module in model.student.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    torch.manual_seed(0)
    with EventStorage():
        losses = model(samples(0, 1))
    assert (losses["loss_distill_bev_response"].item() == 0) is shared


OBJECT_QUERIES = ["bev_queries", "bev_position", "object_queries", "reference_points"]


def test_what_the_paper_fixes_is_inherited_by_default(teacher_files):
    model = build(teacher_files())
    assert set(model.inherited) == {"bev_queries", "bev_position.row", "bev_position.column"}
    frozen = {name for name, p in model.student.inheritable().items() if not p.requires_grad}
    assert frozen == set(model.inherited)


def test_all_learned_inputs_can_be_inherited(teacher_files):
    everything = [*OBJECT_QUERIES, "can_bus_mlp", "level_embeddings", "camera_embeddings"]
    model = build(teacher_files("DISTILL.INHERIT.PARAMS", everything))
    teacher = model.teacher.inheritable()
    assert set(model.inherited) == set(teacher) and "can_bus_mlp.0.weight" in teacher
    for name, parameter in model.student.inheritable().items():
        assert torch.equal(parameter, teacher[name]) and not parameter.requires_grad
    assert not model.student.decoder.reference_points.weight.requires_grad


@pytest.mark.parametrize("alone", ["object_queries", "reference_points"])
def test_object_queries_go_with_the_layer_of_their_reference_points(teacher_files, alone):
    with pytest.raises(ValueError, match=f"INHERIT names {alone}, but not .*: add "):
        build(teacher_files("DISTILL.INHERIT.PARAMS", ["bev_queries", alone]))


def test_one_step_changes_every_trainable_parameter_and_no_inherited_one(teacher_files, samples):
    model = build(teacher_files("DISTILL.INHERIT.PARAMS", OBJECT_QUERIES))
    before = {k: v.clone() for k, v in model.named_parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)
    sum(train_losses(model, samples(0, 1)).values()).backward()
    optimizer.step()
    inherited = {id(model.student.inheritable()[name]) for name in model.inherited}
    moved = {k: not torch.equal(before[k], v) for k, v in model.named_parameters()}
    frozen = {k for k, v in model.named_parameters() if id(v) in inherited}
    assert len(frozen) == 6
    assert {k for k, v in moved.items() if not v} == frozen
    model.verify_inherited()


def test_init_inherits_and_trains(teacher_files):
    model = build(teacher_files(mode="init"))
    for name in model.inherited:
        parameter = model.student.inheritable()[name]
        assert torch.equal(parameter, model.teacher.inheritable()[name]) and parameter.requires_grad
    model.verify_inherited()  # nothing is frozen, nothing to verify


def test_verification_finds_a_changed_query(teacher_files):
    model = build(teacher_files())
    with torch.no_grad():
        model.student.inheritable()["bev_queries"].add_(1.0)
    with pytest.raises(RuntimeError, match="bev_queries differs"):
        model.verify_inherited()


def test_the_teacher_is_frozen_and_not_a_submodule(teacher_files, samples):
    model = build(teacher_files())
    model.train()
    model.teacher.train()
    losses = train_losses(model, samples(1))
    assert not model.teacher.training and not any(m.training for m in model.teacher.modules())
    sum(losses.values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    ours = {id(p) for p in model.teacher.parameters()}
    assert not ours & {id(p) for p in model.parameters()}
    assert all(key.startswith(("student.", "methods.")) for key in model.state_dict())
    model.to(torch.float64)
    assert next(model.teacher.parameters()).dtype == torch.float64


def test_checkpoints_have_the_student_alone(teacher_files, tiny_cfg):
    model = build(teacher_files())
    parts = model.checkpoint_parts()
    assert set(parts) == {"model", "distill"}
    plain = build(student_config(teacher_files()))
    plain.load_state_dict(parts["model"].state_dict())


def test_evaluation_runs_the_student_alone(teacher_files, samples):
    model = build(teacher_files()).eval()
    batch = samples(0, 1)
    with torch.no_grad():
        got = model(batch)
        model.student.eval()
        expected = build_like(model.student)(batch)
    assert torch.equal(got[0]["scores"], expected[0]["scores"])
    assert torch.equal(got[1]["boxes"].tensor, expected[1]["boxes"].tensor)


def build_like(student):
    """Returns a copy of ``student`` without its stream of earlier frames."""
    import copy

    return copy.deepcopy(student)


def test_switches_and_weights(teacher_files, samples):
    batch = samples(0, 1)
    torch.manual_seed(3)
    full = build(teacher_files("DISTILL.BEV_RESPONSE.WEIGHT", 2.0))
    torch.manual_seed(3)
    half = build(teacher_files("DISTILL.METHODS", ["BEVResponse"]))
    torch.manual_seed(3)
    none = build(teacher_files("DISTILL.METHODS", []))
    a, b, c = (train_losses(m, batch) for m in (full, half, none))
    assert not [k for k in c if k.startswith("loss_distill")]
    assert [k for k in b if k.startswith("loss_distill")] == ["loss_distill_bev_response"]
    torch.testing.assert_close(a["loss_distill_bev_response"], 2 * b["loss_distill_bev_response"])
    assert a["loss_distill_bev_response"] > 0


def test_unweighted_values_are_kept_for_the_log_on_the_device_and_given_once(teacher_files, samples):
    model = build(teacher_files("DISTILL.FACTOR", 0.5)).train()
    losses = model(samples(1))  # no EventStorage is open: the forward pass writes nothing
    values = model.pop_values_to_log()
    names = ("temporal_attention", "spatial_attention", "bev_response")
    assert set(values) == {f"distill_raw/{name}" for name in names}
    assert not values["distill_raw/bev_response"].requires_grad
    torch.testing.assert_close(losses["loss_distill_bev_response"], 0.5 * values["distill_raw/bev_response"])
    assert model.pop_values_to_log() == {}


def test_trainer_logs_the_unweighted_values(teacher_files, samples, tmp_path):
    cfg = teacher_files("DISTILL.FACTOR", 0.5, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", 1)
    model = build(cfg)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    trainer = DistillTrainer(model, lambda start: iter([samples(1)]), optimizer)
    trainer.train(0, 1)
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert latest["distill_raw/bev_response"] > 0
    expected = 0.5 * latest["distill_raw/bev_response"]
    assert latest["loss_distill_bev_response"] == pytest.approx(expected, rel=1e-6)


def test_a_forward_pass_waits_for_the_device_once_and_a_step_once_more(
    teacher_files, samples, monkeypatch, tmp_path
):
    """The matcher copies its costs; then the trainer copies losses, logged values and the norm."""
    model = build(teacher_files("OUTPUT_DIR", str(tmp_path)))
    waits = []
    for name in ("cpu", "item", "tolist"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            if self.requires_grad or self.numel() > 1 or name == "cpu":
                waits.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    model.train()(samples(0, 1))
    assert waits == ["cpu"]
    waits.clear()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    trainer = DistillTrainer(model, lambda start: iter([samples(0, 1)]), optimizer)
    monkeypatch.setattr(DistillTrainer, "_write_metrics", lambda *args: None)  # reads what is on the CPU
    trainer.train(0, 1)
    assert waits == ["cpu", "cpu"]


@pytest.mark.parametrize("second", ["a", "b"])
def test_losses_of_two_methods_need_different_names(teacher_files, samples, second):
    built = build(teacher_files("DISTILL.METHODS", []))
    model = Distiller(
        student=built.student,
        teacher=built.teacher,
        methods={"First": Untrained("a"), "Second": Untrained(second)},
        weights={"First": 1.0, "Second": 3.0},
    )
    if second == "a":
        with pytest.raises(ValueError, match="Second returns a loss 'a'"):
            train_losses(model, samples(1))
        return
    losses = train_losses(model, samples(1))
    torch.testing.assert_close(losses["loss_distill_b"], 3 * losses["loss_distill_a"])


def test_a_bfloat16_teacher_gives_nearly_the_same_losses(teacher_files, samples):
    batch = samples(0, 1)
    torch.manual_seed(3)
    exact = train_losses(build(teacher_files()), batch)
    torch.manual_seed(3)
    coarse = train_losses(build(teacher_files("DISTILL.TEACHER.DTYPE", "bfloat16")), batch)
    name = "loss_distill_bev_response"
    assert coarse[name] != exact[name]
    assert coarse[name].dtype == torch.float32
    torch.testing.assert_close(coarse[name], exact[name], rtol=0.1, atol=0.0)
    torch.testing.assert_close(coarse["loss_cls"], exact["loss_cls"], rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("method", "parameter"),
    [
        ("TemporalAttention", "encoder.layers.1.temporal_attention.attention_weights.weight"),
        ("SpatialAttention", "encoder.layers.1.spatial_attention.attention_weights.weight"),
        ("BEVResponse", "encoder.layers.1.ffn.linear2.weight"),
        ("BEVResponse", "image_backbone.conv1.weight"),
    ],
)
def test_every_distillation_loss_reaches_the_student(teacher_files, samples, method, parameter):
    model = build(teacher_files("DISTILL.METHODS", [method]))
    losses = train_losses(model, samples(1))
    (name,) = (name for name in losses if name.startswith("loss_distill"))
    weight = model.student.get_parameter(parameter)
    (gradient,) = torch.autograd.grad(losses[name], weight, allow_unused=True)
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_teacher_precision_is_independent_of_the_trainers(teacher_files, samples, monkeypatch, dtype):
    model = build(teacher_files("DISTILL.TEACHER.DTYPE", dtype))
    seen = {}
    for name, part in (("teacher", model.teacher), ("student", model.student)):

        def features(*arguments, name=name, original=part.features):
            seen[name] = torch.is_autocast_enabled("cpu")
            return original(*arguments)

        monkeypatch.setattr(part, "features", features)
    train_losses(model, samples(1))
    assert seen == {"teacher": dtype == "bfloat16", "student": False}
    with torch.autocast("cpu", torch.bfloat16):
        train_losses(model, samples(1))
    assert seen == {"teacher": dtype == "bfloat16", "student": True}


def test_a_batch_of_two_is_two_batches_of_one(teacher_files, samples):
    """The losses of a batch are the mean of its samples', where the reduction is by sample."""
    model = build(teacher_files("DISTILL.BEV_RESPONSE.REDUCTION", "sum", mode="off")).train()
    for module in model.student.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    with EventStorage():
        both, first, second = (model(samples(*seeds)) for seeds in ((0, 1), (0,), (1,)))
    for name in ("temporal_attention", "spatial_attention", "bev_response"):
        key = f"loss_distill_{name}"
        torch.testing.assert_close(both[key], (first[key] + second[key]) / 2, rtol=1e-4, atol=1e-7)
