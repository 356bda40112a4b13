"""The runtime needs no torch."""

import subprocess
import sys

_CODE = """
import sys
import bevkd2.runtime
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "torchvision", "onnx", "cv2", "scipy", "fvcore"}))
"""


def test_the_runtime_does_not_import_torch() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
