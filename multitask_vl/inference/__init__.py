"""How does a saved adapter answer about pictures: files in, text out, in a few lines of Python."""

from multitask_vl.inference.pipeline import Answer, Pipeline
from multitask_vl.inference.requests import Request

__all__ = ["Answer", "Pipeline", "Request"]
