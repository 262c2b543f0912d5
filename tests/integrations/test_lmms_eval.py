"""Tests of the real lmms-eval, in the environment of `make lmms-eval`, with local tasks."""

import os
import subprocess
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from dpn.common.files import read_json, read_rows
from tests.integrations.conftest import DOCUMENTS, answer, naive_logprob

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-lmms" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="lmms-eval is not there; run make lmms-eval"),
]

TASK = """
task: {name}
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
doc_to_visual: !function utils.images
doc_to_text: question
"""
TASKS = {
    "tiny_answers": """
output_type: generate_until
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, temperature: 0, until: [colour], image_aspect_ratio: pad}
process_results: !function utils.right
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
""",
    "tiny_choices": """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_logprobs": """
output_type: loglikelihood
doc_to_target: answer
process_results: !function utils.logprob
metric_list: [{metric: logprob, aggregation: mean, higher_is_better: true}]
""",
}
UTILS = """
def images(document):
    return document["images"]

def right(document, results):
    return {"right": float(results[0] == document["answer"])}

def logprob(document, results):
    ((total, greedy),) = results
    return {"logprob": total}
"""
FEATURES = Features(
    {
        "question": Value("string"),
        "images": List(Image()),
        "answer": Value("string"),
        "choices": List(Value("string")),
        "gold": Value("int64"),
    }
)
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@pytest.fixture(scope="module")
def answers(loaded):
    """Answers of `dpn.inference` to each document."""
    return [answer(loaded, document, stop=["colour"]) for document in DOCUMENTS]


@pytest.fixture(scope="module")
def logprobs(loaded, answers):
    """Log-probabilities of the first words of each answer, for each document."""
    choices = [" ".join(text.split()[:2]) for text in answers]
    return [{c: naive_logprob(loaded, document, c) for c in choices} for document in DOCUMENTS]


@pytest.fixture(scope="module")
def rows(answers, logprobs):
    """The data set, in which two of five answers and one of the choices are marked as wrong."""
    found = []
    for number, (document, options) in enumerate(zip(DOCUMENTS, logprobs, strict=True)):
        choices = list(options)
        best = choices.index(max(choices, key=lambda choice: options[choice][0]))
        row = {
            "answer": "no" if number < 2 else answers[number],
            "choices": choices,
            "gold": (best + (number == 0)) % len(choices),
        }
        found.append(document._asdict() | row)
    return found


@pytest.fixture(scope="module")
def tasks(rows, tmp_path_factory):
    """Folder of the tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    DatasetDict(test=Dataset.from_list(rows, features=FEATURES)).save_to_disk(folder / "data")
    (folder / "utils.py").write_text(UTILS)
    for name, text in TASKS.items():
        task = TASK.format(name=name, data=folder / "data") + text
        (folder / f"{name}.yaml").write_text(task)
    return folder


def scores(out: Path) -> dict[str, float]:
    """The tasks' metrics."""
    (path,) = out.glob("*_results.json")
    results = read_json(path)["results"]
    metrics = {"tiny_answers": "right", "tiny_choices": "acc", "tiny_logprobs": "logprob"}
    return {task: results[task][f"{metric},none"] for task, metric in metrics.items()}


def responses(out: Path, task: str) -> list:
    """Outputs of the model for each document."""
    (path,) = out.glob(f"*_samples_{task}.jsonl")
    samples = sorted(read_rows(path), key=lambda sample: sample["doc_id"])
    assert [sample["doc_id"] for sample in samples] == list(range(len(DOCUMENTS)))
    return [sample["filtered_resps"] for sample in samples]


def evaluate(processes: int, run: Path, tasks: Path, folder: Path) -> Path:
    """Files that lmms-eval's command line wrote."""
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [PYTHON, "-m", *(several if processes == 2 else []), "lmms_eval"]
    command += ["--model", "dpn", "--model_args", f"run={run},device=cpu", "--batch_size", "2"]
    command += ["--include_path", tasks, "--tasks", ",".join(TASKS)]
    command += ["--output_path", folder / "out", "--log_samples"]
    further = {"HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    environment = os.environ | dict.fromkeys(OFFLINE, "1") | further
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert list((folder / "out").glob("*_results.json")), said
    assert ("Running on rank 1" in said) == (processes == 2)
    return folder / "out"


@pytest.mark.parametrize("processes", [1, 2])
def test_command_line(processes, run, loaded, answers, logprobs, rows, tasks, tmp_path):
    """Answers, ranks and probabilities are those of dpn, and lmms-eval scores them."""
    out = evaluate(processes, run, tasks, tmp_path)
    scored = scores(out)

    assert responses(out, "tiny_answers") == answers
    assert scored["tiny_answers"] == pytest.approx(3 / 5)
    assert len(set(answers)) == len(answers)

    for pairs, options in zip(responses(out, "tiny_choices"), logprobs, strict=True):
        totals, greedy = zip(*options.values(), strict=True)
        assert [-float(loss) for loss, _ in pairs] == pytest.approx(totals, rel=1e-4)
        assert [flag for _, flag in pairs] == [str(flag) for flag in greedy]
    assert scored["tiny_choices"] == pytest.approx(4 / 5)
    assert len({row["gold"] for row in rows}) > 1

    targets = [
        naive_logprob(loaded, d, row["answer"]) for d, row in zip(DOCUMENTS, rows, strict=True)
    ]
    found = responses(out, "tiny_logprobs")
    assert [float(total) for total, _ in found] == pytest.approx([t for t, _ in targets], rel=1e-4)
    assert {flag for _, flag in found} == {"True", "False"}
    assert [flag for _, flag in found] == [str(flag) for _, flag in targets]
