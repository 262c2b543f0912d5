"""Adapters for other frameworks; each is only imported by its framework.

Imports `common`, `data` and `inference`.
"""

from typing import Any


def lmms_eval_models() -> Any:
    """Return the manifest of `--model dpn`, which lmms-eval finds by entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("dpn", simple_class_path="dpn.integrations.lmms_eval.DPN")
