"""Reads what Weights & Biases wrote to a run's folder, with its own inspector."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Part:
    """What one process wrote of a run.

    Attributes:
        files: folder of its tables and pictures.
        run: id, name, project.
        config: of the run.
        history: rows by step, without those of the machine.
        summary: last values.
        exit_code: None if it was never finished.
    """

    files: Path
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read_parts(folder: Path) -> list[Part]:
    """The parts of the run of a run folder, in the order of time."""
    files = sorted(folder.glob("wandb/*run-*/*.wandb"))
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    texts = [
        subprocess.run([*command, file], capture_output=True, text=True, check=True).stdout
        for file in files
    ]
    return [_part(text, file.parent / "files") for text, file in zip(texts, files, strict=True)]


def _part(text: str, files: Path) -> Part:
    part = Part(files)
    for record in map(json.loads, text.splitlines()):
        value = record.get(record["type"])
        match record["type"]:
            case "run":
                part.run = value
            case "config":
                part.config |= value["update"]
            case "history":
                part.history.append(value["item"])
            case "summary":
                part.summary |= value["update"]
            case "exit":
                part.exit_code = value.get("exit_code", 0)
    return part
