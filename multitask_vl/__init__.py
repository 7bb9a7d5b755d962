"""Multitask vision-language fine-tuning with parameter-efficient methods and routing functions in their bottlenecks."""

__version__ = "0.1.0"
