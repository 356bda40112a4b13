"""The configuration: fvcore's CfgNode with Detectron2's key names, read safely, unknown keys refused."""

from bevkd2.config.data_formats import class_names, default_classes, fixed_classes, stored_classes
from bevkd2.config.defaults import add_bevkd2_config, auto_device, get_cfg, load_config, read_config
from bevkd2.config.node import CfgNode, add_removed_key, check_rules
from bevkd2.config.plugins import add_config_extension, import_plugin, load_installed_plugins
from bevkd2.config.shipped import find_file

__all__ = [
    "CfgNode",
    "add_bevkd2_config",
    "add_config_extension",
    "add_removed_key",
    "auto_device",
    "check_rules",
    "class_names",
    "default_classes",
    "find_file",
    "fixed_classes",
    "get_cfg",
    "import_plugin",
    "load_config",
    "load_installed_plugins",
    "read_config",
    "stored_classes",
]
