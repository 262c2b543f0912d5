import copy
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from dpn import DPNForConditionalGeneration, DPNProcessor
from dpn.checkpoints import convert
from dpn.config import build
from tests.checkpoints.conftest import VOCABULARY, as_original, as_ours, hf_llava
from tests.checkpoints.folders import (
    CLIP_KEYS,
    SLOW,
    hr_names,
    hr_tower,
    write_hf_llava,
    write_llava,
    write_shards,
)
from tests.checkpoints.test_loading import gates

TOOL = Path(__file__).parents[2] / "tools" / "convert.py"
KERNELS = [[1, 1], [1, 2]]
POOLING = {
    "pooling_type": "adaptive",
    "pooling_layers": [{"index": i, "kernel_size": KERNELS, "stride": KERNELS} for i in (0, 2)],
    "pooling_function": "conv",
    "use_special_token": True,
}


def reload(folder):
    model, info = DPNForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # A copy: tensors mapped from a file are aligned differently, which changes last digits.
    return copy.deepcopy(model).eval(), DPNProcessor.from_pretrained(folder)


@torch.no_grad()
def logits(model, processor, size=28):
    """Logits of two samples, one with an image."""
    ids = [processor.tokenizer(t).input_ids for t in ("USER: hello world", "What is this? a cat")]
    width = max(map(len, ids)) + 1
    ids[0].insert(1, processor.image_token_id)
    rows = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(width) < torch.tensor([[len(row)] for row in ids])).long()
    return model(input_ids=rows, attention_mask=mask, pixel_values=pixels).logits


def by_hand(model, state):
    """Build the same model with weights set one by one."""
    torch.manual_seed(9)
    fresh = DPNForConditionalGeneration(model.config).eval()
    own = fresh.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name][: len(tensor)] = tensor
    return fresh


def test_hugging_face_llava(tmp_path):
    theirs = write_hf_llava(tmp_path / "hf")
    (report,) = convert(tmp_path / "hf", tmp_path / "ours")
    assert "missing" not in str(report)
    model, processor = reload(tmp_path / "ours")
    assert (processor.image_token_id, model.config.image_token_id) == (VOCABULARY, VOCABULARY)
    assert processor.vocab_size == model.lm_head.out_features == VOCABULARY + 2
    ids = torch.tensor([[1, *[VOCABULARY] * 4, 30, 31, 32]])
    pixels = torch.randn(1, 3, 28, 28)
    short = torch.tensor([[1, VOCABULARY, 30, 31, 32]])
    with torch.no_grad():
        want = theirs(input_ids=ids, pixel_values=pixels, attention_mask=ids).logits
        got = model(input_ids=short, pixel_values=pixels).logits
    torch.testing.assert_close(got[:, 1:], want[:, 4:, : VOCABULARY + 2], atol=1e-4, rtol=1e-4)
    assert model.generation_config.suppress_tokens == [VOCABULARY]


@pytest.mark.parametrize("tower", [True, False])
def test_original_llava_with_and_without_its_tower(tower, tmp_path):
    state = write_llava(tmp_path / "llava", tower)
    reports = convert(tmp_path / "llava", tmp_path / "ours")
    assert [r.title for r in reports] == ["LLaVA", *([] if tower else ["CLIP"])]
    assert "new, set to the mean of these: <image>" in reports[0].notes[0]
    assert reports[0].dropped == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    model, processor = reload(tmp_path / "ours")
    assert (processor.image_token_id, processor.router_token_id) == (VOCABULARY, None)
    want = by_hand(model, as_ours(state))
    table = state["lm_head.weight"]
    want.lm_head.weight.data[VOCABULARY] = table.mean(0)
    assert torch.equal(logits(model, processor), logits(want, processor))


def test_dpn_keeps_its_router_and_the_entry_of_its_token(tmp_path):
    state = write_llava(tmp_path / "dpn", added=["<ROUTER>"], pooling=POOLING)
    write_shards(tmp_path / "dpn", as_original(state) | gates(), count=3)
    convert(tmp_path / "dpn", tmp_path / "ours")
    assert len(list((tmp_path / "ours").glob("model-*-of-00003.safetensors"))) == 3
    model, processor = reload(tmp_path / "ours")
    assert (processor.router_token_id, processor.image_token_id) == (VOCABULARY, VOCABULARY + 1)
    assert model.router.price == 0
    state = as_ours(state)
    for table in (model.language.embed_tokens.weight, model.lm_head.weight):
        name = "lm_head.weight" if table is model.lm_head.weight else "language.embed_tokens.weight"
        assert torch.equal(table[: VOCABULARY + 1], state[name])
        torch.testing.assert_close(table[VOCABULARY + 1], state[name].mean(0))
    for name, tensor in gates().items():
        if "experts" in name:
            layer, expert = name.split(".")[2], int(name.split(".")[4])
            assert torch.equal(model.router.experts[layer][expert], tensor)
    assert model.config.router_config["reduce"] == "conv"
    assert model.config.router_config["min_rows"] == "reference"
    assert processor.tokenization == "transformers-4.31"
    want = by_hand(model, state)
    want.lm_head.weight.data[-1] = state["lm_head.weight"].mean(0)
    want.router.load_state_dict(model.router.state_dict())
    assert torch.equal(logits(model, processor), logits(want, processor))


@pytest.mark.parametrize("converted", [True, False])
def test_training_goes_on_with_the_tokenization_of_dpn(converted, tmp_path):
    state = write_llava(tmp_path / "dpn", added=["<ROUTER>"], pooling=POOLING)
    write_shards(tmp_path / "dpn", as_original(state) | gates())
    folder = tmp_path / "dpn"
    if converted:
        folder = tmp_path / "ours"
        convert(tmp_path / "dpn", folder)
    config = OmegaConf.create(
        {"init": {"model": str(folder)}, "model": {"vision": {"name": "vit"}, "processor": {}}}
    )
    assert build.processor(config, None).tokenization == "transformers-4.31"
    config.model.processor = {"tokenization": "tokenizer"}
    assert build.processor(config, None).tokenization == "tokenizer"


def test_a_router_that_the_config_names_must_be_there(tmp_path):
    write_llava(tmp_path / "dpn", added=["<ROUTER>"], pooling=POOLING)
    with pytest.raises(ValueError, match=r"lacks router: router\.gates\.0\.0\.weight, .* more"):
        convert(tmp_path / "dpn", tmp_path / "ours")
    assert {p.name for p in tmp_path.iterdir()} == {"dpn"}


def test_llava_hr(tmp_path):
    changes = {"is_multipath_encoder": True, "input_image_size": 128}
    slow = "convnext_large_mlp.clip_laion2b_ft_320"
    state = write_llava(tmp_path / "hr", vision_tower_slow=slow, **changes)
    tower = hr_tower()
    named = {k: v for k, v in as_original(state).items() if not k.startswith(CLIP_KEYS)}
    write_shards(tmp_path / "hr", named | hr_names(tower))
    (report,) = convert(tmp_path / "hr", tmp_path / "ours")
    assert (report.title, report.missing, report.unexpected) == ("LLaVA-HR", {}, {})
    model, processor = reload(tmp_path / "ours")
    assert model.config.vision_config["slow_depths"] == list(SLOW["slow_depths"])
    assert processor.transform.size == 128
    pixels = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        want = tower.features(pixels, [(128, 128)] * 2)
        got = model.vision.features(pixels, [(128, 128)] * 2)
    assert got.grids == want.grids
    assert torch.equal(got.tokens, want.tokens)


def test_a_missing_tower_is_an_error(tmp_path):
    write_llava(tmp_path / "llava", tower=False)
    file = tmp_path / "llava" / "clip" / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="clip holds no weights"):
        convert(tmp_path / "llava", tmp_path / "ours")
    save_file(weights, tmp_path / "elsewhere.safetensors")
    convert(tmp_path / "llava", tmp_path / "ours", parts=[tmp_path / "elsewhere.safetensors"])
    reload(tmp_path / "ours")
    write_llava(tmp_path / "whole")
    parts = [tmp_path / "elsewhere.safetensors"]
    (report,) = convert(tmp_path / "whole", tmp_path / "from_whole", parts=parts)
    assert "elsewhere.safetensors was not needed" in str(report)
    (tmp_path / "llava" / "clip").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="whose sizes are unknown"):
        convert(tmp_path / "llava", tmp_path / "other")
    few = {k: v for k, v in weights.items() if "encoder.layers.3" not in k}
    save_file(few, tmp_path / "moved" / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks vision\.model: vision\.model\.encoder.*3\."):
        convert(tmp_path / "llava", tmp_path / "other", parts=[tmp_path / "moved"])


def test_no_incomplete_folder_is_left(tmp_path, monkeypatch):
    write_hf_llava(tmp_path / "hf")
    calls = []

    def full_disk(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("No space left on device")
        save_file(*args, **kwargs)

    monkeypatch.setattr("dpn.checkpoints.conversion.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert(tmp_path / "hf", tmp_path / "ours")
    assert len(calls) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"hf"}


def test_a_part_alone_becomes_a_folder_of_that_part(tmp_path):
    state = as_original(hf_llava().state_dict())
    torch.save(
        {k: v for k, v in state.items() if "mm_projector" in k}, tmp_path / "mm_projector.bin"
    )
    convert(tmp_path / "mm_projector.bin", tmp_path / "ours")
    (file,) = (tmp_path / "ours").iterdir()
    got = load_file(file)
    want = {k: v for k, v in as_ours(hf_llava().state_dict()).items() if k.startswith("projector")}
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_our_own_checkpoint_with_the_config_of_another_folder(tmp_path):
    state = write_llava(tmp_path / "llava")
    convert(tmp_path / "llava", tmp_path / "ours")
    model, processor = reload(tmp_path / "ours")
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    weights = {f"model.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": weights, "global_step": 3}, tmp_path / "step-3.ckpt")
    convert(tmp_path / "step-3.ckpt", tmp_path / "again", like=tmp_path / "ours")
    again, words = reload(tmp_path / "again")
    assert torch.equal(logits(again, words), logits(model, processor))
    assert not torch.equal(again.lm_head.weight[:VOCABULARY], state["lm_head.weight"])


def test_the_command_line(tmp_path, monkeypatch, capsys):
    write_llava(tmp_path / "llava")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, words)])
        runpy.run_path(str(TOOL), run_name="__main__")
        return capsys.readouterr()

    done = run(tmp_path / "llava", tmp_path / "ours")
    assert "(LLaVA): " in done.out
    assert f"written to {tmp_path / 'ours'}" in done.out
    assert "converting 2/2" in done.err
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "dpn_llava"
    with pytest.raises(SystemExit, match=r"^convert\.py: .*ours exists; give another target"):
        run(tmp_path / "llava", tmp_path / "ours")
    with pytest.raises(SystemExit, match=r"^convert\.py: There is no file or folder"):
        run(tmp_path / "nowhere", tmp_path / "new")


MEASURE = """
import re, sys
from pathlib import Path
from dpn.checkpoints import convert
from dpn.config import build

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
convert(*sys.argv[1:])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_no_more_than_one_shard_is_held(suffix, tmp_path):
    """Six shards of 32 MB, measured against the process that has imported everything."""
    source = tmp_path / "vicuna"
    source.mkdir()
    layers = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(24)]
    write_shards(source, {n: torch.randn(1024, 2048) for n in layers}, suffix, count=6)
    arguments = [sys.executable, "-c", MEASURE, source, tmp_path / "ours"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 32 * 1.2
