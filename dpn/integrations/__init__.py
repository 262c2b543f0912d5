"""Adapters to other frameworks; each is imported by its framework alone."""

from typing import Any


def lmms_eval_models() -> Any:
    """What lmms-eval finds by its entry point: `--model dpn`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("dpn", simple_class_path="dpn.integrations.lmms_eval.DPN")
