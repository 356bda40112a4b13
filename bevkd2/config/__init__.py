"""The configuration: fvcore's CfgNode with Detectron2's key names, read safely, unknown keys refused."""

from bevkd2.config.defaults import add_bevkd2_config, get_cfg, load_config, read_config
from bevkd2.config.mono_data import class_names, stored_classes
from bevkd2.config.node import CfgNode
from bevkd2.config.plugins import import_plugin
from bevkd2.config.shipped import find_file

__all__ = [
    "CfgNode",
    "add_bevkd2_config",
    "class_names",
    "find_file",
    "get_cfg",
    "import_plugin",
    "load_config",
    "read_config",
    "stored_classes",
]
