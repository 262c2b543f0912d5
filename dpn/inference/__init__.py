"""Answers of a trained model: single batches, many questions, evaluations and overlay figures.

May import `model` and everything below it, `benchmarks`, `metrics` and `reports`.
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

__all__ = [
    "Answer",
    "Decoding",
    "answer",
    "ask",
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
