"""Answers about image files from a saved adapter."""

from multitask_vl.inference.attention import AttentionMap
from multitask_vl.inference.pipeline import Answer, Pipeline
from multitask_vl.inference.requests import Request

__all__ = ["Answer", "AttentionMap", "Pipeline", "Request"]
