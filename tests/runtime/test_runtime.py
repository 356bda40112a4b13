"""The runtime over deployable forms finds what the detectors find: frames in scenes, and single images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model
from bevkd2.modeling import Detector
from bevkd2.runtime import Detections, MonoRuntime, MultiViewRuntime, load, seal
from bevkd2.runtime.graph import METADATA_KEY
from tests.fuzz.exported import write_exported
from tests.modeling.conftest import HEIGHT, WIDTH, make_frame, tiny_cfg
from tests.runtime.graphs import TorchGraph

__all__ = ["make_frame", "tiny_cfg"]  # fixtures

MakeFrame = Callable[..., dict[str, Any]]


def assert_found(found: Detections, expected: dict[str, Any]) -> None:
    assert len(found) == len(expected["scores"])
    np.testing.assert_allclose(found.scores, expected["scores"].numpy(), atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected["boxes"].tensor.numpy(), atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected["labels"].numpy())


def multi_view(cfg: CfgNode, **settings: Any) -> tuple[Detector[Any, Any, Any], MultiViewRuntime]:
    for key, value in settings.items():
        cfg.MODEL.BEVFORMER[key] = value
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model, MultiViewRuntime(TorchGraph(cfg, model, (HEIGHT, WIDTH)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"PREV_BEV_SAMPLING": "bilinear", "RAY_HEADING": True, "SCORE_THRESHOLD": 0.05},
        {"SCORE_THRESHOLD": 0.9, "POST_CENTER_RANGE": [-20.0, -20.0, -10.0, 20.0, 20.0, 10.0]},
    ],
)
def test_frames_of_scenes(tiny_cfg: CfgNode, make_frame: MakeFrame, settings: dict[str, Any]) -> None:
    model, runtime = multi_view(tiny_cfg, **settings)
    frames = [make_frame(i, scene=scene, step=i) for scene in ("a", "b") for i in range(3)]
    frames.insert(3, frames[2])  # the same time again: no past
    frames.append(make_frame(9, scene="a", step=9))  # a scene that is come back to
    for frame in frames:
        (expected,) = model.detect([frame])
        found = runtime.detect(
            frame["images"].numpy(),
            frame["lidar2img"].numpy(),
            timestamp=frame["timestamp"],
            scene=frame["scene_token"],
            can_bus=frame["can_bus"].numpy(),
        )
        assert_found(found, expected)


def test_the_past_matters_and_can_be_forgotten(tiny_cfg: CfgNode, make_frame: MakeFrame) -> None:
    _, runtime = multi_view(tiny_cfg)
    first, second = make_frame(0, step=0), make_frame(1, step=1)

    def run(frame: dict[str, Any]) -> np.ndarray:
        arrays = frame["images"].numpy(), frame["lidar2img"].numpy()
        return runtime.detect(*arrays, timestamp=frame["timestamp"], can_bus=frame["can_bus"].numpy()).scores

    run(first)
    with_past = run(second)
    runtime.reset()
    assert not np.allclose(with_past, run(second), atol=1e-5)


def test_rows_of_a_batch_with_and_without_a_past(tiny_cfg: CfgNode, make_frame: MakeFrame) -> None:
    model, _ = multi_view(tiny_cfg)
    form = model.deployable((HEIGHT, WIDTH)).eval()
    inputs = list(form.examples(3))
    inputs[4] = torch.randn_like(inputs[4])
    inputs[5] = torch.tensor([True, False, True])
    with torch.no_grad():
        together = form(*inputs)
        for row in range(3):
            alone = form(*(tensor[row : row + 1] for tensor in inputs))
            torch.testing.assert_close(together[3][row], alone[3][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["student", "two_frames_smoke"])
def test_single_images(name: str) -> None:
    options = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.SMOKE.SCORE_THRESHOLD",
        0.09,
        "MODEL.FCOS3D.TEST.SCORE_THRESHOLD",
        1e-4,
    ]
    cfg = load_config(f"configs/demo_mono/{name}.yaml", options)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    runtime = MonoRuntime(TorchGraph(cfg, model, (128, 416)))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    cam2img = torch.tensor([[250.0, 0, 205, 30], [0, 250, 60, 0], [0, 0, 1, 0.005], [0, 0, 0, 1]])
    for height, width in ((128, 416), (121, 409)):  # the second one is padded to the first one's size
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        (expected,) = model.detect([{"image": image, "cam2img": cam2img, "image_id": "0"}])
        assert len(expected["scores"]) > 3
        found = runtime.detect(image.numpy(), cam2img.numpy())
        assert_found(found, expected)
        if "boxes2d" in expected:
            np.testing.assert_allclose(found.boxes2d, expected["boxes2d"].numpy(), atol=1e-3)
    with pytest.raises(ValueError, match="reads 128 x 416"):
        runtime.detect(np.zeros((3, 129, 416), dtype=np.uint8), cam2img.numpy())


def test_pose_or_vector(tiny_cfg: CfgNode, make_frame: MakeFrame) -> None:
    _, runtime = multi_view(tiny_cfg)
    frame = make_frame(0)
    with pytest.raises(ValueError, match="either ego2global or can_bus"):
        runtime.detect(frame["images"].numpy(), frame["lidar2img"].numpy(), timestamp=1)


@pytest.mark.parametrize("spinning", [True, False])
def test_threads_wait_as_asked(spinning: bool, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install bevkd2[export]")
    write_exported("mono")(tmp_path)
    graph = load(tmp_path / "student.onnx", threads=2, spinning=spinning).graph
    options = graph._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="bevkd2 export"):
        load("nowhere.onnx")


def test_a_package_of_torch_export_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "student.pt2").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        ValueError, match=r"student\.pt2 is a package of torch\.export, .*torch\.export\.load"
    ):
        load(tmp_path / "student.pt2")


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("multi_view", "score_threshold", float("nan"), "score_threshold .* is nan, expected .* finite"),
        ("multi_view", "score_threshold", float("inf"), "score_threshold .* is inf, expected .* finite"),
        ("multi_view", "score_threshold", True, "score_threshold .* is True, expected int or float"),
        ("multi_view", "post_center_range", [-1.0, 1.0], "post_center_range .*, expected six finite"),
        ("multi_view", "post_center_range", ["a"] * 6, "post_center_range .*, expected six finite"),
        ("multi_view", "kind", "mono", "kind .* is 'mono', whose inputs are .*cam2img"),
        ("mono", "kind", "multi_view", "post_center_range .* is None, expected list"),
        ("mono", "max_detections", True, "max_detections .* is True, expected int"),
    ],
)
def test_a_description_that_cannot_be_is_named(
    tmp_path: Path, kind: str, key: str, value: Any, message: str
) -> None:
    """A threshold of NaN or infinity was lowered for ever."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install bevkd2[export]")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install bevkd2[export]")
    write_exported(kind)(tmp_path)
    path = tmp_path / "student.onnx"
    model = onnx.load(path)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    changed = {**json.loads(texts[METADATA_KEY]), key: value}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(changed)})
    onnx.save(model, path)
    seal(path)
    with pytest.raises(ValueError, match=rf"student\.onnx: {message}"):
        load(path)
