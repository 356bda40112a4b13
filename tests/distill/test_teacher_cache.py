"""What a teacher says of a sample, kept on disk: equal losses without its forward pass; what is refused."""

import json
import logging
import zlib

import pytest
import torch

from bevkd2.checkpoint import load_file, save_file
from bevkd2.distill.teacher_cache import TeacherCache
from bevkd2.engine import build_trainer
from tests.distill.methods.harness import build_pair, distill_losses, make_batch
from tests.distill.pairs import build, train_losses

# One method of every set of fields; KDDETR and CrossKD run parts of the teacher on what is stored.
METHODS = [
    *(("BEVFormer", name) for name in ("TemporalAttention", "SpatialAttention", "BEVResponse", "PKD")),
    *(("BEVFormer", name) for name in ("OFD", "KDDETR", "D3ETR", "DETRDistill", "TempDistiller")),
    *(("PGD", name) for name in ("DepthGuidedPrediction", "PerspectiveFeature", "CrossKD", "GID")),
    ("SMOKE", "PKD"),
]
NARROW = ("PKD", "BEVResponse", "PerspectiveFeature")  # on students of another width


def forbid(model, monkeypatch):
    def run(*_):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr(model.teacher, "extract_only", run)


def losses_of(model, batch):
    torch.manual_seed(0)  # some methods draw
    return distill_losses(model, batch)


@pytest.mark.parametrize(("detector", "method"), METHODS)
def test_losses_are_equal_and_the_teacher_does_not_run(detector, method, tmp_path, monkeypatch):
    batch, other = make_batch(detector, 1, 2), make_batch(detector, 3, 4)
    width = 8 if method in NARROW else 16
    plain = build_pair(detector, method, student_width=width)
    expected = [losses_of(plain, samples) for samples in (batch, other)]
    for begin in (True, False):  # the second model begins with a folder that is filled
        cached = build_pair(detector, method, student_width=width, cache=TeacherCache(tmp_path, "teacher"))
        assert losses_of(cached, batch) == expected[0]
        if begin:
            assert losses_of(cached, other) == expected[1]
        forbid(cached, monkeypatch)
        assert [losses_of(cached, samples) for samples in (batch, other)] == expected
        monkeypatch.undo()
    mixed = [batch[0], other[0]]  # stored from different batches
    forbid(cached, monkeypatch)
    for key, loss in losses_of(plain, mixed).items():
        torch.testing.assert_close(losses_of(cached, mixed)[key], loss, rtol=1e-4, atol=1e-6)


def test_other_methods_add_their_fields_to_what_is_stored(tmp_path, monkeypatch):
    batch = make_batch("PGD", 1, 2)
    for method in ("PKD", "DepthGuidedPrediction"):
        losses_of(build_pair("PGD", method, cache=TeacherCache(tmp_path, "teacher")), batch)
    for method in ("PKD", "DepthGuidedPrediction"):
        cached = build_pair("PGD", method, cache=TeacherCache(tmp_path, "teacher"))
        losses_of(cached, batch)
        forbid(cached, monkeypatch)
        assert losses_of(cached, batch) == losses_of(build_pair("PGD", method), batch)
        monkeypatch.undo()
    assert len(list(tmp_path.glob("teacher/*"))) == 2


def test_half_precision_is_close_and_smaller(tmp_path):
    batch = make_batch("PGD", 1, 2)
    (expected,) = losses_of(build_pair("PGD", "PKD"), batch).values()
    sizes = []
    for dtype in (torch.float32, torch.float16):
        cached = build_pair("PGD", "PKD", cache=TeacherCache(tmp_path / str(dtype), "teacher", dtype))
        (first,) = losses_of(cached, batch).values()
        (loss,) = losses_of(cached, batch).values()
        assert loss.dtype == torch.float32 and loss == first  # what is stored is what is learnt from
        torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
        sizes.append(sum(file.stat().st_size for file in tmp_path.glob(f"{dtype}/*/*")))
    assert sizes[1] < 0.6 * sizes[0]


def test_a_sample_that_changes_is_refused(tmp_path):
    cached = build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher"))
    batch = make_batch("PGD", 1)
    batch[0]["sample_id"] = "first"
    losses_of(cached, batch)
    changed = {**batch[0], "image": 255 - batch[0]["image"]}
    with pytest.raises(ValueError, match="sample 'first' differs from what it was before"):
        losses_of(cached, [changed])


def test_images_of_several_sizes_are_refused(tmp_path):
    cached = build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher"))
    first, second = make_batch("PGD", 1, 2)
    losses_of(cached, [first])
    with pytest.raises(ValueError, match=r"fpn\.0 of one sample is .* images differ in size"):
        losses_of(cached, [{**second, "image": second["image"].repeat(1, 2, 2)}])


def test_damaged_and_foreign_files_are_named(tmp_path):
    batch = make_batch("PGD", 1, 2)
    losses_of(build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher")), batch)
    cached = build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher"))
    with torch.no_grad():
        for parameter in cached.teacher.parameters():
            parameter.mul_(1.1)  # another teacher of the same name
    with pytest.raises(ValueError, match=r"differs from the teacher's outputs now .*: remove .*teacher"):
        losses_of(cached, batch)
    file = next(tmp_path.glob("teacher/*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        losses_of(build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher")), batch)


def packed(header, numbers):
    text = json.dumps(header).encode()
    return zlib.compress(len(text).to_bytes(8, "little") + text + numbers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zlib.compress(bytes(2**24), 9), "is damaged .*its header has 0 bytes"),
        (packed({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}, b""), "1099511627776"),
        (
            packed({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, bytes(9)),
            "does not hold the 1",
        ),
        (packed({"a": {"dtype": "U8", "shape": [1]}}, b"0"), "its header is no JSON of a safetensors file"),
        (packed([], b""), "its header is no JSON of a safetensors file"),
        (
            packed({"fpn.0": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
            "expected .*float32",
        ),
    ],
)
def test_a_file_that_claims_anything_is_named_and_not_unpacked(tmp_path, content, message):
    batch = make_batch("PGD", 1)
    losses_of(build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher")), batch)
    (file,) = tmp_path.glob("teacher/*")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name}.*{message}.*remove it"):
        losses_of(build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher")), batch)


def test_numbers_that_half_precision_does_not_hold_are_named(tmp_path):
    cached = build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher", torch.float16))
    with torch.no_grad():
        for convolution in cached.teacher.neck.modules():
            if isinstance(convolution, torch.nn.Conv2d):
                convolution.weight.mul_(1e4)
    with pytest.raises(ValueError, match=r"torch\.float16 does not hold fpn\.\d, .*set it to float32"):
        losses_of(cached, make_batch("PGD", 1))


def test_fields_that_share_memory_are_stored(tmp_path):
    """The output of the last layer is the bird's-eye view."""
    settings = {"SOURCES": ["bev", "bev.layers"]}
    batch = make_batch("BEVFormer", 1)
    cached = build_pair("BEVFormer", "FitNet", cache=TeacherCache(tmp_path, "teacher"), **settings)
    assert losses_of(cached, batch) == losses_of(build_pair("BEVFormer", "FitNet", **settings), batch)


def test_where_the_data_set_lies_does_not_matter(tmp_path, monkeypatch):
    batch = make_batch("PGD", 1)
    for place in ("a", "b"):
        batch[0]["file_name"] = f"/{place}/1.png"
        losses_of(build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher")), batch)
    assert len(list(tmp_path.glob("teacher/*"))) == 1


def test_files_of_other_samples_do_not_count(tmp_path, caplog):
    for seed, there in ((1, 0), (2, 0), (2, 2)):
        cached = build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher"))
        (cache,) = cached.caches
        cache.num_samples = 5
        with caplog.at_level(logging.INFO, "bevkd2.distill"):
            losses_of(cached, make_batch("PGD", seed))
        assert f"{there} of 5 samples are there" in caplog.messages[-1]


def test_the_size_is_told_and_compared_with_the_space(tmp_path, caplog):
    cached = build_pair("PGD", "PKD", cache=TeacherCache(tmp_path, "teacher"))
    (cache,) = cached.caches
    cache.num_samples = 10**9
    with (
        caplog.at_level(logging.INFO, "bevkd2.distill"),
        pytest.raises(ValueError, match=r"GiB are to be written, but .*CACHE_DTYPE: float16"),
    ):
        losses_of(cached, make_batch("PGD", 1))
    assert "0 of 1000000000 samples are there" in caplog.text
    assert not list(tmp_path.glob("teacher/*"))


def test_the_config_builds_it_and_other_weights_have_a_folder_of_their_own(teacher_files, samples, tmp_path):
    folder = tmp_path / "cache"
    options = ("DISTILL.TEACHER.CACHE", str(folder), "MODEL.GRID_MASK.ENABLED", False)
    for dtype in ("float32", "float16"):
        model = build(teacher_files(*options, "DISTILL.TEACHER.CACHE_DTYPE", dtype))
        train_losses(model, samples(1, 2))
    assert len(list(folder.iterdir())) == 2
    train_losses(build(teacher_files(*options)), samples(1, 2))
    assert len(list(folder.iterdir())) == 2
    content = load_file(tmp_path / "teacher.pth")
    content["model"]["bev_queries"][0, 0] += 1e-3
    save_file(content, tmp_path / "teacher.pth")
    train_losses(build(teacher_files(*options)), samples(1, 2))
    assert len(list(folder.iterdir())) == 3
    wider = ("INPUT.POINT_RANGE", [-12.0, -9.0, -5.0, 12.0, 9.0, 4.0])
    cfg = teacher_files(*options, *wider, "DISTILL.TEACHER.OPTS", list(wider))
    train_losses(build(cfg), samples(1, 2))
    assert len(list(folder.iterdir())) == 4
    assert not build(teacher_files(*options, "DISTILL.METHODS", [])).caches


@pytest.mark.parametrize(
    "option",
    [
        ("INPUT.PHOTOMETRIC", True),
        ("INPUT.HISTORY", "random", "INPUT.QUEUE_LENGTH", 2),
        ("MODEL.GRID_MASK.ENABLED", True),
    ],
)
def test_random_augmentation_is_refused_before_training(option, teacher_files, tmp_path):
    plain = ("INPUT.PHOTOMETRIC", False, "INPUT.HISTORY", "latest", "MODEL.GRID_MASK.ENABLED", False)
    cfg = teacher_files(*plain, *option, "DISTILL.TEACHER.CACHE", str(tmp_path), "SOLVER.MAX_ITER", 1)
    with pytest.raises(ValueError, match=rf"TEACHER\.CACHE keeps .*{option[0]}: {option[1]} changes"):
        build_trainer(cfg, build(cfg))
