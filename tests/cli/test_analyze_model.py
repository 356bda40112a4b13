"""What tools/analyze_model.py counts equals what can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from bevkd2.cli.console import run_cli
from bevkd2.config import CfgNode, load_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SIZE = ["--image-size", "96x64"]


@pytest.fixture
def tool() -> ModuleType:
    from bevkd2.cli import analyze_model

    return analyze_model


def student() -> CfgNode:
    return load_config(CONFIGS / "demo_mono" / "student.yaml")


class Deformable(nn.Module):
    """A deformable convolution whose offsets follow the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4, 3, 3))

    def forward(self, images: Tensor) -> Tensor:
        offset = images.new_zeros(1, 18, 6, 8)
        return deform_conv2d(images, offset + images.mean(), self.weight, padding=1)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
def test_deformable_convolution(tool: ModuleType) -> None:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(Deformable(), (torch.randn(1, 4, 6, 8),)).unsupported_ops_warnings(False)
    analysis.set_op_handle("torchvision::deform_conv2d", tool.deform_conv_flops)
    cells = 6 * 8
    assert analysis.by_operator() == {"deform_conv2d": cells * 5 * 4 * 9 + 4 * cells * 4 * 9}


def by_hooks(model: nn.Module, run: Any) -> int:
    """Multiply-adds of all convolutions, counted as they run."""
    counts = []

    def hook(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        counts.append(output[0, 0].numel() * layer.weight.numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(hook)
    run()
    return sum(counts)


@pytest.mark.parametrize("deform", [False, True])
def test_flops_are_those_of_every_branch_and_level(tool: ModuleType, deform: bool) -> None:
    cfg = student()
    cfg.MODEL.FCOS3D.DCN_ON_LAST_CONV = deform
    model, sample = tool.build(cfg, "cpu"), tool.noise(cfg, (96, 64))
    counted = tool.count_flops(model, sample)
    with torch.no_grad():
        convolutions = by_hooks(model, lambda: model([sample]))
    # What is counted besides: norms, resampling and the depth distribution, all small.
    assert convolutions < counted["flops"]["total"] < 1.1 * convolutions
    assert sum(n for part, n in counted["flops"].items() if part != "total") == counted["flops"]["total"]
    assert counted["image_size"] == [96, 64]
    assert "torchvision::deform_conv2d" not in counted["not_counted"]
    assert "aten::max_pool2d" in counted["not_counted"]


def test_images_have_the_size_that_the_config_gives_them(tool: ModuleType) -> None:
    sizes = {
        "pgd/pgd_r18_kitti": (375, 1242),
        "smoke/smoke_dla34_kitti": (384, 1280),
        "pgd/pgd_r18_nuscenes": (900, 1600),
    }
    for name, size in sizes.items():
        assert tool.noise(load_config(CONFIGS / f"{name}.yaml"))["image"].shape[1:] == size
    cfg = student()
    cfg.INPUT.RESIZE_TEST = [48, 48]
    assert tool.noise(cfg, (96, 64))["image"].shape[1:] == (32, 48)


def test_parameters_are_counted_per_part(tool: ModuleType) -> None:
    model = tool.build(student(), "cpu")
    counts = tool.count_parameters(model)
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["neck"] == sum(p.numel() for p in model.neck.parameters())
    assert set(counts) == {"backbone", "neck", "head", "total"}


def test_a_distillation_has_student_teacher_and_adapters(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, out = str(CONFIGS / "demo_mono" / "distill.yaml"), tmp_path / "new" / "out.json"
    assert tool.main(["--config-file", config, *SIZE, "--time", "1", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    student, teacher = report["models"]["student"], report["models"]["teacher"]
    assert student["parameters"]["total"] < teacher["parameters"]["total"]
    assert student["flops"]["total"] < teacher["flops"]["total"]
    assert report["adapters"] == {"PerspectiveFeature": 2 * (64 * 64 + 64), "DepthGuidedPrediction": 0}
    assert student["seconds"] > 0 and student["device"] in ("cpu", "cuda")
    printed = capsys.readouterr().out
    assert "student: PGD, an image of 96 x 64" in printed and "not counted: aten::" in printed
    assert "adapters of PerspectiveFeature: 8,320 parameters" in printed


def test_multi_view_models_have_parameters_and_a_note_on_flops(
    tool: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    config = str(CONFIGS / "bevformer" / "teacher1_r101_150.yaml")
    assert tool.main(["--config-file", config]) == 0
    printed = capsys.readouterr().out
    assert "56.60" in printed and "FLOPs: not counted" in printed


def test_parameters_alone_take_no_forward_pass(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "count_flops", None)
    report = tool.analyze(load_config(CONFIGS / "pgd" / "pgd_r18_half_kitti.yaml"), flops=False)
    assert report["models"]["model"]["parameters"]["total"] == 14_175_541


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", "gone.yaml"], "gone.yaml"),
        (["--config-file", str(CONFIGS / "demo_mono" / "student.yaml"), "MODEL.NECK", "1"], "MODEL.NECK"),
    ],
)
def test_errors_are_one_message(
    tool: ModuleType, words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert run_cli(tool.main, words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert "(--traceback prints it)" in error


@pytest.mark.parametrize("size", ["96", "96x", "0x64"])
def test_a_bad_image_size_is_named(tool: ModuleType, size: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--config-file", str(CONFIGS / "demo_mono" / "student.yaml"), "--image-size", size])
    assert f"{size!r} is no image size, expected WIDTHxHEIGHT" in capsys.readouterr().err
