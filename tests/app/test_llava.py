"""Run LLaVA's stages in sequence at a tiny size, with the commands of the real ones."""

import json

import pytest
from PIL import Image
from safetensors.torch import load_file

from dpn.common.files import read_json
from dpn.config.compose import compose
from dpn.train import train
from tests.app.conftest import COLOURS


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Folder for `paths.data_root` with a few rows of both data sets of LLaVA."""
    root = tmp_path_factory.mktemp("data")
    captions, instructions = [], []
    for number in range(8):
        colour = list(COLOURS)[number % 3]
        picture = Image.new("RGB", (40, 30), COLOURS[colour])
        for folder in ("LLaVA-Pretrain/images/00000", "coco/train2017"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / f"{number}.jpg")
        human = {"from": "human", "value": "Name the colour.\n<image>"}
        answer = {"from": "gpt", "value": f"A {colour} field"}
        row = {"id": f"{number:09}", "image": f"00000/{number}.jpg"}
        captions.append(row | {"conversations": [human, answer]})
        human = {"from": "human", "value": "<image>\nWhich colour?"}
        answer = {"from": "gpt", "value": colour}
        turns = [
            human,
            answer,
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "yes"},
        ]
        row = {"id": number, "image": f"coco/train2017/{number}.jpg", "conversations": turns}
        instructions.append(row)
    text = [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "hello"}]
    instructions += [{"id": f"t{n}", "model": "", "conversations": text} for n in range(4)]
    file = root / "LLaVA-Pretrain" / "blip_laion_cc_sbu_558k.json"
    file.write_text(json.dumps(captions))
    (root / "llava_v1_5_mix665k.json").write_text(json.dumps(instructions))
    return root


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def changed(before, after):
    """Return the parts whose weights differ; tables that have grown do not count."""
    return {
        ".".join(name.split(".")[: 2 if name.startswith("vision") else 1])
        for name in before.keys() & after.keys()
        if before[name].shape == after[name].shape and not before[name].equal(after[name])
    }


@pytest.mark.slow
def test_three_stages_of_llava_hr(data_root, tmp_path):
    tiny = [
        "model=llava_hr_tiny",
        f"paths.data_root={data_root}",
        f"paths.output_root={tmp_path}",
        "data.num_workers=0",
        "data.global_batch=4",
        "data.batch_size=2",
        "data.holdout=2",
        "logger=none",
    ]
    first = train(compose("train", [*tiny, "stage=pretrain", "router=none"]))
    assert read_json(first / "status.json")["status"] == "finished"
    start = weights(first)
    again = [*tiny, "stage=pretrain", "router=none", "trainer.max_steps=1"]
    assert changed(start, weights(train(compose("train", again)))) == {"projector", "vision.merge"}

    init = [f"init.model={first}", f"init.projector={first}"]
    second = train(compose("train", [*tiny, "router=dpe", *init]))
    tuned = weights(second)
    moved = {
        "language",
        "lm_head",
        "projector",
        *("vision." + p for p in ("fast", "slow", "merge")),
    }
    assert changed(start, tuned) >= moved
    metrics = read_json(second / "metrics.json")
    assert 0 < metrics["cost/visual_macs_ratio"] <= 1

    third = train(compose("train", [*tiny, "router=dpe", "stage=gates", f"init.model={second}"]))
    assert changed(tuned, weights(third)) == {"router"}
