"""Writes the student alone: the ``model`` part of a checkpoint, without adapters and optimizer.

The names of the classes are kept.

bevkd2 export-weights output/distill_r50/model_final.pth student.safetensors
"""

import argparse
from collections.abc import Sequence

from bevkd2.checkpoint import load_file, model_state, save_file
from bevkd2.cli.paths import path_to_write


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, copies the weights and prints their size; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint of bevkd2 train")
    parser.add_argument("output", type=path_to_write, help="file to write, .safetensors or .pth")
    args = parser.parse_args(argv)
    content = load_file(args.checkpoint)
    state = model_state(content, args.checkpoint)
    classes = {"classes": content["classes"]} if "classes" in content else {}
    weights = state if args.output.suffix == ".safetensors" else {"model": state}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({**weights, **classes}, args.output)
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {len(state)} tensors, {size:.1f} MB")
    return 0
