"""Installs a wheel in a fresh environment and uses it there: an op, the command, the shipped configs.

python .ci/check_wheel.py dist

The environment has the wheel alone; the dependencies are those of the Python that runs this script, so that
the check takes seconds. Nothing of the checkout can be imported there.
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

USE = """
import pathlib, sys
import torch
import bevkd2
from bevkd2.config import find_file, load_config
from bevkd2.kitti import kitti_scores
from bevkd2.ops import rotated_iou


def check(holds, what):
    if not holds:
        sys.exit(f"the installed wheel fails: {what}")


package = pathlib.Path(bevkd2.__file__).parent
check(package.is_relative_to(sys.prefix), f"bevkd2 was imported from {package}, expected from {sys.prefix}")
boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0], [1.0, 0.0, 2.0, 2.0, 0.0]])
iou = rotated_iou(boxes, boxes)
check(torch.allclose(iou, torch.tensor([[1.0, 1 / 3], [1 / 3, 1.0]])), f"rotated_iou returned {iou}")
cfg = load_config("configs/distill_r50.yaml", ["OUTPUT_DIR", "elsewhere"])
found = (cfg.OUTPUT_DIR, cfg.MODEL.META_ARCHITECTURE)
check(found == ("elsewhere", "Distiller"), f"configs/distill_r50.yaml was read as {found}")
for name in ("configs/distill_r50.yaml", "assets/demo_teacher.safetensors"):
    file = find_file(name)
    check(file.is_file() and file.is_relative_to(package), f"{name} was found at {file}, not in {package}")
print(f"bevkd2 {bevkd2.__version__}: op and config work from {pathlib.Path.cwd()}")
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command in ``cwd`` and returns what it prints; its errors go to the console."""
    words = list(map(str, command))
    return subprocess.run(words, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Checks the one wheel of a folder."""
    wheels = list(Path(sys.argv[1]).resolve().glob("bevkd2-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"{sys.argv[1]} has {len(wheels)} wheels of bevkd2, expected 1; run `make clean wheel`")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = folder / "environment"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheels[0], cwd=folder)
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = Path(run(python, "-c", where, cwd=folder).strip())
        # Last on the path, and its own .pth files, such as an editable bevkd2's, are not read.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        print(run(python, "-I", "-c", USE, cwd=elsewhere), end="")
        command = environment / "bin" / "bevkd2"
        if "export-weights" not in run(command, "--help", cwd=elsewhere):
            sys.exit("bevkd2 --help lists no command export-weights")
        world = ("make-synthetic", "--out", "world", "--train-scenes", "1", "--val-scenes", "1")
        run(command, *world, "--workers", "1", cwd=elsewhere)
        training = ("train", "--config-file", "configs/demo/student.yaml", "DATASETS.ROOT", "world")
        run(command, *training, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", "output", cwd=elsewhere)
        run(command, "export-weights", "output/model_final.pth", "student.safetensors", cwd=elsewhere)
        if not (elsewhere / "student.safetensors").stat().st_size:
            sys.exit("bevkd2 export-weights wrote an empty file")
        run(command, "report", "output", "--frames", "0", cwd=elsewhere)
        if "Final scores" not in (elsewhere / "report.html").read_text():
            sys.exit("bevkd2 report wrote a page without scores")
        print(f"{wheels[0].name}: trains, reports and exports a model through the command bevkd2")


if __name__ == "__main__":
    main()
