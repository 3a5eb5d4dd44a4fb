"""Tied and untied causal language models, their token tables, the split tie and the remedies."""

from tying_utils.models.architectures import ARCHITECTURES, Tables, build, tables

__all__ = ["ARCHITECTURES", "Tables", "build", "tables"]
