"""What the figures of a benchmark were taken on."""

import os
import platform
import re
from pathlib import Path


def machine() -> dict[str, str | int]:
    """Returns processor, threads, GPU and torch's version."""
    import torch  # here: gpu_check.py may run in a Python without it

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def machine_name(device: str) -> str:
    """The name of the files that hold a machine's results: the GPU's, or the processor's and its cores."""
    if device.startswith("cuda"):
        import torch

        return slug(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0))
    return slug(f"{re.sub(r'@.*|[(](R|TM)[)]|CPU|Processor', ' ', _processor())} {cores} cores")


def slug(text: str) -> str:
    """A text as a file name: small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
