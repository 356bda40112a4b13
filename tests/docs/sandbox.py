"""A folder in which the commands of a page are run on small data, and the rules that make them small.

What a command says is changed in these ways only:

* ``/path/to/NAME`` becomes a synthetic world in the layout of DATASETS.FORMAT, with the version and the
  splits that the command asks for; so do the places where real data usually are (``data/kitti``);
* ``/path/to/detections`` becomes KITTI detection files;
* a teacher's weights (``pgd_teacher.pth``) are made, random ones of the teacher that the config names, unless
  a command of the page wrote them; what ``tools/import_weights.py`` reads is made in the published layout,
  and what MODEL.BACKBONE.WEIGHTS names for a ResNet;
* what ``make demo`` and ``make demo-mono`` leave behind is made where a command names it;
* ``--num-gpus 8`` becomes ``--num-gpus 1``, and so with torchrun's ``--nproc-per-node``; torchrun takes a
  free port (``--standalone``);
* scenes and frames are fewer, and options at the end make training short and models of the full size small.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.config import CfgNode, load_config
from bevkd2.distill import is_distillation, resolve_teacher, student_config, teacher_config
from tests.docs import worlds
from tests.docs.pages import KEYS, ROOT
from tests.limits import PROGRAM_SECONDS

SHORT = (
    *("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.WARMUP_ITERS", "1"),
    *("SOLVER.STEPS", "(1,)", "MODEL.BACKBONE.FREEZE_AT", "0", "DATALOADER.NUM_WORKERS", "0"),
)
# Depths, kinds of layers and feature levels stay those of the config.
SMALL = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.FPN.OUT_CHANNELS", 32),
    *("MODEL.BEVFORMER.BEV_SHAPE", [8, 8], "MODEL.BEVFORMER.NUM_QUERIES", 16),
    *("MODEL.FCOS3D.FEATURE_CHANNELS", 32, "MODEL.SMOKE.FEATURE_CHANNELS", 32),
    *("INPUT.RESIZE_TRAIN", [], "INPUT.RESIZE_TEST", [], "INPUT.AFFINE.SIZE", [416, 128]),
)
SMALL_WORDS = tuple(map(str, SMALL))
# Scripts with a config, and the options that they get.
CONFIGURED = {
    "tools/train_net.py": SHORT,
    "tools/visualize.py": ("MODEL.DEVICE", "cpu"),
    "tools/analyze_model.py": ("MODEL.DEVICE", "cpu"),
    "tools/analyze_distillation.py": SHORT,
    "tools/import_weights.py": (),
    "tools/compute_priors.py": (),
}
READ_DATA = (
    "tools/train_net.py",
    "tools/analyze_distillation.py",
    "tools/visualize.py",
    "tools/compute_priors.py",
)
USUAL_ROOTS = ("data/nuscenes", "data/kitti")
# Scripts, and the arguments that they get before options of the config.
ARGUMENTS = {
    **dict.fromkeys(CONFIGURED, ()),
    "tools/make_synthetic.py": ("--workers", "1"),
    "tools/export_weights.py": (),
    "tools/visualize.py": ("--num", "1"),
    "tools/analyze_model.py": ("--image-size", "208x64"),
    "tools/analyze_distillation.py": ("--batches", "1"),
    "tools/kitti_eval.py": (),
    "benchmarks.bench_ms_deform_attn": ("--quick",),
    "benchmarks.bench_kitti_eval": ("--frames", "20", "--repeats", "1"),
    "benchmarks.nuscenes_mono_roundtrip": ("--scenes", "1"),
    "benchmarks.model_zoo": ("--only", "pgd/pgd_regnetx08_half_kitti"),
}
FEWER = ("--train-scenes", "--val-scenes", "--train-frames", "--val-frames")
ONE = ("--num-gpus", "--nproc-per-node", "--time")

_processes = multiprocessing.get_context("forkserver")
# Every command runs in its own process, forked from one that has imported the slow modules.
_processes.set_forkserver_preload(["bevkd2.engine", "bevkd2.data.synthetic", "bevkd2.visualization"])


class NoRuleError(Exception):
    """No rule says how a command could be run in a test."""


def run_script(words: list[str], folder: Path, log: Path) -> None:
    """Does what ``python SCRIPT ARGUMENTS`` or ``python -m MODULE ARGUMENTS`` does, in this process."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = python_path()
    sys.argv = words
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, str(folder))
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")


def python_path() -> str:
    """PYTHONPATH of programs that are started: the package is that of the working tree."""
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def first_option(words: list[str]) -> int:
    """Index of the first KEY VALUE option of the config, or of the end."""
    return next((i for i, word in enumerate(words) if word in KEYS), len(words))


class Sandbox:
    """The folder; one for each page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: set[str] = set()  # weights that a command of the page wrote
        for name in ("configs", "docs"):
            (folder / name).symlink_to(ROOT / name)
        # Copied: commands of the docs may write there, and scripts beside themselves.
        for name in ("assets", "benchmarks", "tools"):
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name)

    def run(self, words: list[str]) -> list[str]:
        """Run a command that starts with python or torchrun.

        Args:
            words: as the page has them.

        Returns:
            The words that were run.

        Raises:
            NoRuleError: nothing says how to make it small.
            RuntimeError: it failed; the message ends with its output.
        """
        small = self.shrink(words)
        log = self.folder / "log.txt"
        if small[0] == "torchrun":
            code = self._torchrun(small[1:], log)
        else:
            process = _processes.Process(target=run_script, args=(small[1:], self.folder, log))
            process.start()
            process.join(PROGRAM_SECONDS)
            process.kill()
            process.join()
            code = process.exitcode
        if code:
            output = log.read_text()[-3000:] if log.is_file() else ""
            raise RuntimeError(f"exit code {code} ({' '.join(small)}):\n{output}")
        return small

    def _torchrun(self, words: list[str], log: Path) -> int:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]
        environment = {**os.environ, "PYTHONPATH": python_path()}
        with log.open("w") as file:
            return subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                stdout=file,
                stderr=file,
                timeout=PROGRAM_SECONDS,
                check=False,
            ).returncode

    def shrink(self, words: list[str]) -> list[str]:
        """Runs the command on small data, after making the files that it needs."""
        script = next((word for word in words if word in ARGUMENTS), None)
        if script is None:
            known = ", ".join(ARGUMENTS)
            raise NoRuleError(f"it runs none of the scripts that the sandbox knows how to shrink: {known}")
        words = list(words)
        for i, word in enumerate(words):
            if word in ONE:
                words[i + 1] = "1"
            if word in FEWER:
                words[i + 1] = str(worlds.fewer(int(words[i + 1])))
        if script == "tools/make_synthetic.py" and "kitti" not in words:
            words += ("--frames", "2")
        self._make_leftovers(script, words)
        first = first_option(words)
        words[first:first] = () if "--table" in words else ARGUMENTS[script]
        if script in CONFIGURED:
            self._shrink_configured(script, words)
        if script == "tools/kitti_eval.py":
            words = [self._kitti_file(word) for word in words]
        left = [word for word in words if word.startswith("/path/to/")]
        if left:
            raise NoRuleError(f"nothing makes {left[0]} real")
        return words

    def _make_leftovers(self, script: str, words: list[str]) -> None:
        """What the demos leave behind, where a command names it."""
        if any("output/demo/" in word for word in words):
            worlds.demo(self.folder)
        named = any("output/demo-mono/" in word or "data/demo_mono" in word for word in words)
        if named and script != "tools/make_synthetic.py":
            worlds.demo_mono(self.folder)

    def _shrink_configured(self, script: str, words: list[str]) -> None:
        """Appends options, and makes the data and the weights of the placeholders."""
        config = self.folder / words[words.index("--config-file") + 1]
        first = first_option(words)
        plain = load_config(config)
        words += CONFIGURED[script]
        if not config.resolve().parent.name.startswith("demo"):
            words += SMALL_WORDS
            words += ("DISTILL.TEACHER.OPTS", repr(list(SMALL_WORDS))) if is_distillation(plain) else ()
        cfg = load_config(config, words[first:])
        if script in READ_DATA:
            self._make_data(cfg, words)
        teacher = cfg.DISTILL.TEACHER.WEIGHTS
        if teacher.endswith("_teacher.pth") and teacher not in self.written:
            resolve_teacher(cfg)
            worlds.save_weights(teacher_config(cfg), self.folder / teacher)
        if cfg.MODEL.BACKBONE.WEIGHTS:
            plain_cfg = student_config(cfg) if is_distillation(cfg) else cfg
            worlds.save_weights(plain_cfg, self.folder / cfg.MODEL.BACKBONE.WEIGHTS)
        if script == "tools/import_weights.py":
            published, out = (word for word in words if Path(word).suffix in (".pth", ".safetensors"))
            worlds.save_published(words[words.index("--arch") + 1], cfg, self.folder / published)
            self.written.add(out)

    def _make_data(self, cfg: CfgNode, words: list[str]) -> None:
        """Makes the data set, and has the command read it."""
        root = cfg.DATASETS.ROOT
        if root == "data/demo":
            worlds.demo(self.folder)
        if root == "data/demo_mono":
            worlds.demo_mono(self.folder)
        if not (root in USUAL_ROOTS or root.startswith("/path/to/")):
            return
        name = PurePosixPath(root).name
        if cfg.DATASETS.FORMAT == "kitti":
            made = worlds.kitti(self.folder, name, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        else:
            made = worlds.nuscenes(self.folder, name, cfg)
        words += ("DATASETS.ROOT", str(made))
        words[:] = [str(made) if word == root else word for word in words]

    def _kitti_file(self, word: str) -> str:
        """A path below /path/to/kitti, or /path/to/detections, which are those of its split val."""
        place = PurePosixPath(word)
        if place.parts[:3] != ("/", "path", "to"):
            return word
        root = worlds.kitti(self.folder, "kitti", ("train", "val"))
        if place.name == "detections":
            return str(worlds.kitti_detections(root, "val", self.folder / "detections"))
        return str(root.joinpath(*place.parts[4:])) if place.parts[3] == "kitti" else word
