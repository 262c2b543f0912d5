"""Measure time and memory of a data file of the size of LLaVA's 665K mix.

    python experiments/data/index.py [FOLDER]     # writes experiments/data/results.json

Measures indexing, opening the index again, and each worker, each in a process of its own. The file
is generated with the real format and proportions.
"""

import json
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = 665_298
# Number of rows by image folder; the remaining rows have no image.
SOURCES = {
    "coco/train2017": 364_100,
    "vg/VG_100K": 86_417,
    "ocr_vqa/images": 80_000,
    "gqa/images": 72_140,
    "textvqa/train_images": 21_953,
}
IMAGES = 8  # files per source, shared by the rows
SYLLABLES = ["ka", "lo", "mi", "ten", "ru", "sa", "vi", "no", "ber", "ta", "gel", "is", "for"]


def generate(folder: Path, rows: int = ROWS) -> Path:
    """Write the images and the JSON file, row by row, and return the file."""
    from PIL import Image

    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(5000)]
    for source in SOURCES:
        (folder / source).mkdir(parents=True, exist_ok=True)
        for number in range(IMAGES):
            image = Image.effect_noise((64, 48), 50).convert("RGB")
            image.save(folder / source / f"{number:012d}.jpg")
    file = folder / "llava_v1_5_mix665k.json"
    with file.open("w") as stream:
        stream.write("[\n")
        for number in range(rows):
            place = number * ROWS // rows  # in the real file, which ends without images
            row: dict[str, Any] = {"id": f"{number:09d}"}
            for source, count in SOURCES.items():
                if place < count:
                    row["image"] = f"{source}/{number % IMAGES:012d}.jpg"
                    break
                place -= count
            else:
                row["model"] = ""
            turns = []
            for turn in range(rng.choice((1, 2, 5, 10)) if "image" in row else 6):
                mark = "<image>\n" if "image" in row and not turn else ""
                question = mark + " ".join(rng.choices(words, k=10)) + "?"
                answer = " ".join(rng.choices(words, k=30))
                turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            row["conversations"] = turns
            stream.write(json.dumps(row) + (",\n" if number < rows - 1 else "\n]\n"))
    return file


def measure(task: str, file: Path) -> dict[str, Any]:
    """Run a task in a new process and return its figures; tasks are `make`, `open` and `work`."""
    command = [sys.executable, __file__, task, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_rows(file: Path) -> dict[str, Any]:
    """Open the rows, which makes the index if there is none; measure time and peak memory."""
    from dpn.data.rows import FileRows
    from dpn.data.sources.base import Split

    before, started = peak_mb(), time.perf_counter()
    rows = FileRows(Split(file, file.parent))
    seconds = time.perf_counter() - started
    return {
        "rows": len(rows),
        "seconds": round(seconds, 2),
        "peak_mb": round(peak_mb()),
        "added_mb": round(peak_mb() - before),
    }


def work(file: Path, workers: int = 4, batches: int = 200) -> dict[str, Any]:
    """Measure the unique memory of each worker after loading shuffled batches."""
    import dpn.data
    from dpn.data.tokenizer import train_tokenizer
    from dpn.model import DPNProcessor

    tokenizer = train_tokenizer([f"{a}{b} " for a in SYLLABLES for b in SYLLABLES] * 2)
    processor = DPNProcessor(tokenizer, image_size=28)  # small, so that batches need little memory
    data = dpn.data.build(
        "llava_json",
        processor=processor,
        train_file=str(file),
        image_root=str(file.parent),
        batch_size=16,
        num_workers=workers,
        max_length=100_000,
    )
    loader = iter(data.train_dataloader())
    for _ in range(batches):
        next(loader)
    own = [unique_mb(process.pid) for process in multiprocessing.active_children()]
    return {"batches": batches, "worker_uss_mb": own}


def unique_mb(process: int) -> int:
    """Return the USS in MB: memory of a process that no other process shares (Linux)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) // 1024


def main(folder: Path) -> None:
    print(f"generating {ROWS} rows in {folder}", flush=True)
    file = generate(folder)
    result: dict[str, Any] = {"file_mb": round(file.stat().st_size / 2**20)}
    for name, task in (("index", "make"), ("reopen", "open"), ("workers", "work")):
        result[name] = measure(task, file)
        print(name, result[name], flush=True)
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [("make" | "open"), file]:
            print(json.dumps(open_rows(Path(file))))
        case ["work", file]:
            print(json.dumps(work(Path(file))))
        case [folder]:
            main(Path(folder))
        case _:
            with tempfile.TemporaryDirectory() as folder:
                main(Path(folder))
