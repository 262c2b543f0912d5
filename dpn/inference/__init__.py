"""Answers of a trained model: single batches, many questions, evaluations and overlay figures.

Imports `common`, `tokens`, `metrics`, `cost`, `data`, `projectors`, `routers`, `benchmarks`,
`runs`, `families`, `reports`, `model` and `checkpoints`.
"""

from dpn.inference.answering import (
    Answer,
    Decoding,
    answer,
    ask,
    describe,
    generate,
    inputs_of,
    load,
    model_folder,
    prompts,
    question,
    read_images,
    route_of,
    save,
    training_prompts,
)
from dpn.inference.methods import Method, check_methods

__all__ = [
    "Answer",
    "Decoding",
    "Method",
    "answer",
    "ask",
    "check_methods",
    "describe",
    "generate",
    "inputs_of",
    "load",
    "model_folder",
    "prompts",
    "question",
    "read_images",
    "route_of",
    "save",
    "training_prompts",
]
