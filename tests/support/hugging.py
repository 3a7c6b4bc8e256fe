"""Folders as Hugging Face's models are kept in, with small configs."""

from __future__ import annotations

from pathlib import Path

import transformers


def small_config(**options: object) -> transformers.PreTrainedConfig:
    """Describe a ResNet of a few thousand parameters."""
    given = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return transformers.ResNetConfig(**{**given, **options})


def folder(
    path: Path,
    config: transformers.PreTrainedConfig | None = None,
    architecture: str = "ResNetForImageClassification",
) -> Path:
    """Write the config.json of a model."""
    config = config or small_config(num_labels=3)
    config.architectures = [architecture] if architecture else None
    config.save_pretrained(path)
    return path
