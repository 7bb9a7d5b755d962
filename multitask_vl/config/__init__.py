"""What does a run do: typed configuration from composed YAML files, with the origin of every value."""

from multitask_vl.config.compatibility import differences, fingerprint
from multitask_vl.config.load import Loaded, config_from, load, load_config
from multitask_vl.config.resources import locate

__all__ = ["Loaded", "config_from", "differences", "fingerprint", "load", "load_config", "locate"]
