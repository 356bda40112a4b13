"""Writes the student alone: the ``model`` part of a checkpoint, without adapters and optimizer.

The names of the classes are kept.

python tools/export_weights.py output/distill_r50/model_final.pth student.safetensors
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bevkd2.checkpoint import load_file, model_state, save_file


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, copies the weights and prints their size; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint of tools/train_net.py")
    parser.add_argument("output", help="file to write, .safetensors or .pth")
    args = parser.parse_args(argv)
    content = load_file(args.checkpoint)
    state = model_state(content, args.checkpoint)
    classes = {"classes": content["classes"]} if "classes" in content else {}
    weights = state if args.output.endswith(".safetensors") else {"model": state}
    save_file({**weights, **classes}, args.output)
    size = Path(args.output).stat().st_size / 1e6
    print(f"{args.output}: {len(state)} tensors, {size:.1f} MB")
    return 0
