"""A folder in which the commands of a page are run on small data, and the rules that make them small.

What a command says is changed in these ways only:

* ``/path/to/...`` becomes a synthetic world with the version and the splits that the command asks for;
* ``teacher.pth`` is made, with random weights of the teacher that the config names;
* what ``make demo`` leaves behind (its world, ``output/demo``) is made where a page runs it or names it;
* ``--num-gpus 8`` becomes ``--num-gpus 1``, and so with torchrun's ``--nproc-per-node``; torchrun takes a
  free port (``--standalone``);
* scenes and frames are fewer, and options at the end make training short and models of the full size small.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from nuscenes.utils.splits import create_splits_scenes

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.checkpoint import save_file
from bevkd2.config import CfgNode, load_config, resolve_teacher, student_config, teacher_config
from bevkd2.d2 import build_model
from bevkd2.data.synthetic import WorldConfig, generate
from tests.docs.pages import ROOT

SECONDS = 120
SHORT = (
    *("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.WARMUP_ITERS", "1"),
    *("DATALOADER.NUM_WORKERS", "0"),
)
# Depths, kinds of layers and feature levels stay those of the config.
SMALL = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.BEVFORMER.EMBED_DIM", 32),
    *("MODEL.BEVFORMER.BEV_SHAPE", [8, 8], "MODEL.BEVFORMER.NUM_QUERIES", 16),
)
ARGUMENTS = {
    "tools/train_net.py": (),
    "tools/make_synthetic.py": ("--workers", "1"),
    "tools/export_weights.py": (),
    "tools/visualize.py": ("--num", "1"),
    "benchmarks/bench_ms_deform_attn.py": ("--quick",),
    "benchmarks/bench_train_step.py": ("--iterations", "1", "--warm-up", "1"),
}
DEMO_SCENES = (240, 24)
_OPTION = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")

_processes = multiprocessing.get_context("forkserver")
# Every command gets a process of its own, forked from one that has imported what is slow to import.
_processes.set_forkserver_preload(["bevkd2.engine", "bevkd2.data.synthetic", "bevkd2.visualization"])


class NoRuleError(Exception):
    """No rule says how a command could be run in a test."""


def scenes(number: int) -> int:
    """Fewer scenes, in such a way that different worlds of a page stay different."""
    return math.ceil(number / 100)


def run_script(words: list[str], folder: Path, log: Path) -> None:
    """What ``python SCRIPT ARGUMENTS`` does, in this process."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")


class Sandbox:
    """The folder; one for each page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("configs", "tools", "benchmarks", "docs"):
            (folder / name).symlink_to(ROOT / name)
        if (ROOT / "assets").is_dir():  # copied: commands of the docs may write there
            shutil.copytree(ROOT / "assets", folder / "assets")

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
            process.join(SECONDS)
            process.kill()
            process.join()
            code = process.exitcode
        if code:
            output = log.read_text()[-3000:] if log.is_file() else ""
            raise RuntimeError(f"exit code {code} ({' '.join(small)}):\n{output}")
        return small

    def _torchrun(self, words: list[str], log: Path) -> int:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        with log.open("w") as file:
            return subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                stdout=file,
                stderr=file,
                timeout=SECONDS,
                check=False,
            ).returncode

    def shrink(self, words: list[str]) -> list[str]:
        """The command on small data; what it needs is made."""
        script = next((word for word in words if word in ARGUMENTS), None)
        if script is None:
            known = ", ".join(ARGUMENTS)
            raise NoRuleError(f"it runs none of the scripts that the sandbox knows how to shrink: {known}")
        words = list(words)
        for flag in ("--num-gpus", "--nproc-per-node"):
            if flag in words:
                words[words.index(flag) + 1] = "1"
        if script == "tools/make_synthetic.py" and "kitti" not in words:
            words += ("--frames", "2")
        for flag in ("--train-scenes", "--val-scenes", "--train-frames", "--val-frames"):
            if flag in words:
                words[words.index(flag) + 1] = str(scenes(int(words[words.index(flag) + 1])))
        if any(word.startswith("output/demo/") for word in words):
            self.demo()
        options = next((i for i, word in enumerate(words) if _OPTION.fullmatch(word)), len(words))
        words[options:options] = ARGUMENTS[script]
        if script == "tools/train_net.py":
            self._shrink_training(words)
        left = [word for word in words if word.startswith("/path/to/")]
        if left:
            raise NoRuleError(f"nothing makes {left[0]} real")
        return words

    def _shrink_training(self, words: list[str]) -> None:
        """Appends options, and makes the data set and the teacher that placeholders stand for."""
        config = self.folder / words[words.index("--config-file") + 1]
        first = next((i for i, word in enumerate(words) if _OPTION.fullmatch(word)), len(words))
        full_size = config.resolve().parent != ROOT / "configs" / "demo"
        distilled = load_config(config).MODEL.META_ARCHITECTURE == "Distiller"
        words += SHORT
        words += map(str, SMALL if full_size else ())
        words += ("DISTILL.TEACHER.OPTS", repr(list(SMALL))) if full_size and distilled else ()
        cfg = load_config(config, words[first:])
        for i, word in enumerate(words):
            if word.startswith("/path/to/nuscenes"):
                words[i] = str(self.dataset(Path(word).name, cfg))
        if cfg.DISTILL.TEACHER.WEIGHTS == "teacher.pth":
            resolve_teacher(cfg)
            self.weights(teacher_config(cfg), "teacher.pth")

    def dataset(self, name: str, cfg: CfgNode) -> Path:
        """A synthetic world that has the version and the splits of a config, one scene each."""
        version, official = cfg.DATASETS.VERSION, create_splits_scenes()
        named = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        splits = {split: official.get(split, [split])[:1] for split in named}
        root = self.folder / "-".join([name, version, *splits])
        world = WorldConfig(
            version=version,
            num_train_scenes=len(splits),
            num_val_scenes=0,
            frames_per_scene=2,
            image_size=(160, 90),
        )
        generate(world, root, workers=1, progress=False)
        table = root / version / "scene.json"
        records = json.loads(table.read_text())
        for record, names in zip(records, splits.values(), strict=True):
            record["name"] = names[0]
        table.write_text(json.dumps(records))
        (root / version / "splits.json").write_text(json.dumps(splits))
        return root

    def weights(self, cfg: CfgNode, path: str) -> None:
        """A checkpoint of the plain model of a config, untrained."""
        cfg = cfg.clone()
        cfg.MODEL.DEVICE = "cpu"
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        save_file({"model": build_model(cfg).state_dict()}, str(self.folder / path))

    def demo(self) -> None:
        """What ``make demo`` leaves behind (tests/tools/test_demo.py runs it)."""
        if (self.folder / "output" / "demo").is_dir():
            return
        student = load_config(ROOT / "configs" / "demo" / "student.yaml")
        distilled = student_config(load_config(ROOT / "configs" / "demo" / "distill.yaml"))
        train, val = map(scenes, DEMO_SCENES)
        world = WorldConfig.preset("easy", num_train_scenes=train, num_val_scenes=val, frames_per_scene=2)
        generate(world, self.folder / student.DATASETS.ROOT, workers=1, progress=False)
        self.weights(student, "output/demo/student/model_final.pth")
        self.weights(distilled, "output/demo/distilled/model_final.pth")
