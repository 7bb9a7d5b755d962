"""Would a run of this configuration start, and if not, what is to be mended: looked at before anything runs."""

from multitask_vl.doctor.command import main
from multitask_vl.reproduction.parameters import parameter_report

__all__ = ["main", "parameter_report"]
