"""Typed configuration of a run, composed from YAML files, with the origin of every value."""

from multitask_vl.config.compatibility import differences, fingerprint
from multitask_vl.config.load import LoadedConfig, config_from, load, load_config
from multitask_vl.config.resources import locate

__all__ = ["LoadedConfig", "config_from", "differences", "fingerprint", "load", "load_config", "locate"]
