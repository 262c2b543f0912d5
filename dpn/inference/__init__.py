"""A trained model answers: one batch, many questions, whole evaluations, pictures of what was kept.

Imports `model` and all that it is made of, `benchmarks`, `metrics` and `reports`.
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
