from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dpn import DPNConfig, DPNForConditionalGeneration, DPNProcessor
from dpn.checkpoints.loading import load, resize_positions
from dpn.checkpoints.tokenizers import read_tokenizer
from dpn.checkpoints.vocabulary import match_entries
from dpn.common.errors import FileError
from tests.checkpoints.conftest import (
    LAYERS,
    TOWER,
    VOCABULARY,
    as_on_disk,
    as_original,
    as_ours,
    hf_llava,
    text_config,
    write_tokenizer,
)

GATES = {"name": "dpe", "layers": [0, 2], "reduce": "conv", "kernels": [[1, 1], [1, 2]]}


def our_model(
    rows=VOCABULARY, router=None, seed=5, image_token=VOCABULARY - 1, empty_language=False, **tower
):
    torch.manual_seed(seed)
    config = DPNConfig(
        text_config=text_config(rows),
        vision_config={"name": "clip", **TOWER, **tower},
        router_config=router,
        image_token_id=image_token,
    )
    return DPNForConditionalGeneration(config, empty_language).eval()


def gates(seed=2):
    """DPN's router v1 with two convolutions, by its own names."""
    shapes = {"mlp1.0.weight": 32, "mlp1.0.bias": 32, "mlp1.1.weight": (8, 32)}
    shapes["predictor.weight"] = (2, 8)
    named = {f"pooling_router.{n}": shape for n, shape in shapes.items()}
    named |= {"experts.0.weight": (32, 1, 1, 1), "experts.1.weight": (32, 1, 1, 2)}
    g = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{layer}.{n}": torch.randn(shape, generator=g)
        for layer in (0, 2)
        for n, shape in named.items()
    }


@pytest.mark.parametrize("spell", [as_original, as_on_disk, dict])
def test_loaded_it_answers_as_hugging_face_does(spell, tmp_path):
    theirs = hf_llava()
    save_file(spell(theirs.state_dict()), tmp_path / "model.safetensors")
    ours = our_model()
    report = load(ours, tmp_path)
    assert (report.missing, report.unexpected, report.notes) == ({}, {}, [])
    pixels = torch.randn(2, 3, 28, 28)
    image = VOCABULARY - 1
    ids = torch.randint(3, image, (2, 9))
    ids[:, 2] = image
    spread = torch.cat([ids[:, :2], torch.full((2, 4), image), ids[:, 3:]], 1)
    with torch.no_grad():
        want = theirs(input_ids=spread, pixel_values=pixels, attention_mask=spread > 0).logits
        got = ours(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(got[:, 2:], want[:, 5:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[:, :2], want[:, :2], atol=1e-4, rtol=1e-4)


def test_a_dpn_checkpoint_brings_its_router(tmp_path):
    routers = gates()
    torch.save(as_original(hf_llava().state_dict()) | routers, tmp_path / "pytorch_model.bin")
    model = our_model(router=GATES)
    report = load(model, tmp_path / "pytorch_model.bin")
    assert report.missing == {}
    router = model.router
    for layer in ("0", "2"):
        named = {k.removeprefix(f"model.layers.{layer}."): v for k, v in routers.items()}
        x = torch.randn(3, 32)
        hidden = F.layer_norm(
            x,
            (32,),
            named["pooling_router.mlp1.0.weight"],
            named["pooling_router.mlp1.0.bias"],
        )
        hidden = F.gelu(hidden @ named["pooling_router.mlp1.1.weight"].T)
        want = hidden @ named["pooling_router.predictor.weight"].T
        torch.testing.assert_close(router.gates[layer](x), want)
        for mine, expert in zip(router.experts[layer], ("0", "1"), strict=True):
            assert torch.equal(mine, named[f"experts.{expert}.weight"])
    del routers["model.layers.2.pooling_router.predictor.weight"]
    torch.save(as_original(hf_llava().state_dict()) | routers, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"required weights, router: router\.gates\.2\.3\.weight"):
        load(model, tmp_path)


def test_a_missing_router_or_tower_is_reported(tmp_path):
    state = as_original(hf_llava().state_dict())
    state = {k: v for k, v in state.items() if "vision_tower" not in k}
    torch.save(state | {"model.extra": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    model = our_model(router=GATES)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = load(model, tmp_path)
    assert set(report.missing) == {"vision.model", "router"}
    assert report.unexpected == {"no part": ["model.extra"]}
    for name, tensor in model.state_dict().items():
        kept = name.startswith(("vision", "router"))
        assert torch.equal(tensor, before[name]) == kept, name
    text = str(report)
    assert "(LLaVA): " in text
    assert "missing in router: router.gates.0.0.weight, " in text
    with pytest.raises(
        ValueError, match=r"required weights, router: router\.gates\.0\.0\.weight, .* more"
    ):
        load(model, tmp_path, parts=("router",))


@pytest.mark.parametrize("part", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_missing_weight_of_the_language_model_is_an_error(part, tmp_path):
    state = as_original(hf_llava().state_dict())
    del state[part]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=part.replace("model.", "language.").replace(".", r"\.")):
        load(our_model(), tmp_path)


def test_a_projector_file_fills_the_projector_alone(tmp_path):
    state = as_original(hf_llava().state_dict())
    file = tmp_path / "checkpoint-24.bin"
    torch.save({k: v.half() for k, v in state.items() if "mm_projector" in k}, file)
    model = our_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = load(model, file, parts=("projector",))
    assert len(report.taken) == 4
    for name, tensor in model.state_dict().items():
        kept = before[name]
        if name.startswith("projector"):
            kept = as_ours(hf_llava().state_dict())[name].half().float()
        assert torch.equal(tensor, kept)
    torch.save({"model.mm_projector.0.weight": torch.zeros(32, 24)}, file)
    with pytest.raises(ValueError, match=r"lacks required weights, projector: projector\.layers"):
        load(model, file)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_empty_language_model_stays_mapped_from_its_file(name, tmp_path):
    file = tmp_path / name
    state = {k: v.bfloat16() for k, v in as_original(hf_llava().state_dict()).items()}
    (save_file if file.suffix == ".safetensors" else torch.save)(state, file)
    empty, usual = our_model(empty_language=True), our_model()
    assert {p.device.type for p in empty.language.parameters()} == {"meta"}
    load(empty, tmp_path)
    load(usual, tmp_path)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    areas = [[int(x, 16) for x in m[0].split("-")] for m in maps if m[-1] == str(file)]
    for part in (empty.language, empty.lm_head):
        for parameter in part.parameters():
            assert parameter.dtype == torch.bfloat16
            assert any(low <= parameter.data_ptr() < high for low, high in areas)
    other = usual.state_dict()
    assert all(torch.equal(v.float(), other[k]) for k, v in empty.state_dict().items())
    assert torch.equal(empty.language.rotary_emb.inv_freq, usual.language.rotary_emb.inv_freq)


def test_other_sizes_are_refused_before_anything_changes(tmp_path):
    save_file(hf_llava().state_dict(), tmp_path / "model.safetensors")
    model = our_model(width=28)
    before = model.language.norm.weight.clone()
    with pytest.raises(ValueError, match=r"class_embedding is \[24\], expected \[28\]"):
        load(model, tmp_path)
    assert torch.equal(model.language.norm.weight, before)


def test_positions_of_another_image_size_are_resized(tmp_path):
    state = hf_llava().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    model = our_model(image_size=56)
    report = load(model, tmp_path)
    assert "5 positions resized to 17" in report.notes[0]
    table = state["model.vision_tower.embeddings.position_embedding.weight"]
    got = model.vision.model.embeddings.position_embedding.weight
    assert torch.equal(got[0], table[0])
    want = F.interpolate(table[1:].T.view(1, -1, 2, 2), (4, 4), mode="bicubic")[0]
    torch.testing.assert_close(got[1:], want.flatten(1).T)
    assert resize_positions(table.half(), 17).dtype == torch.float16


def rows_of(folder, tokenizer, state, rows):
    """Return both tables after loading; each original entry is filled with its own number."""
    number = torch.arange(float(rows))[:, None].expand(-1, 32).contiguous()
    state |= {"model.embed_tokens.weight": number, "lm_head.weight": number + 1000}
    torch.save(state, folder / "pytorch_model.bin")
    size = len(tokenizer)
    model = our_model(size, image_token=tokenizer.convert_tokens_to_ids("<image>"))
    report = load(model, folder, tokenizer)
    tables = model.language.embed_tokens.weight[:, 0], model.lm_head.weight[:, 0]
    torch.testing.assert_close(tables[0] + 1000, tables[1])
    return tables[0].tolist(), report


def test_vocabulary_entries_are_matched_by_token(tmp_path):
    write_tokenizer(tmp_path / "vicuna")
    words = DPNProcessor(read_tokenizer(tmp_path / "vicuna")).tokenizer
    image, router = (words.convert_tokens_to_ids(t) for t in ("<image>", "<ROUTER>"))
    assert (image, router) == (VOCABULARY, VOCABULARY + 1)
    base = [float(i) for i in range(VOCABULARY)]
    state = as_original(hf_llava().state_dict())
    # Vicuna: both tokens are new.
    mean = sum(base) / VOCABULARY
    got, report = rows_of(tmp_path / "vicuna", words, dict(state), VOCABULARY)
    assert got == pytest.approx([*base, mean, mean])
    assert "the mean of these: <image>, <ROUTER>" in report.notes[0]
    # DPN: <ROUTER> is trained and has the number of <image> here.
    write_tokenizer(tmp_path / "dpn", ["<ROUTER>"])
    got, report = rows_of(tmp_path / "dpn", words, dict(state), VOCABULARY + 1)
    mean = (sum(base) + VOCABULARY) / (VOCABULARY + 1)
    assert got == pytest.approx([*base, mean, VOCABULARY])
    # Hugging Face: <image>, <pad> and padding entries.
    write_tokenizer(tmp_path / "hf", ["<image>", "<pad>"])
    got, report = rows_of(tmp_path / "hf", words, dict(state), VOCABULARY + 24)
    mean = (sum(base) + VOCABULARY) / (VOCABULARY + 1)
    assert got == pytest.approx([*base, VOCABULARY, mean])
    assert "23 entries of the source are not used" in report.notes[0]


def test_vocabularies_that_cannot_be_matched_are_refused():
    ours = {"a": 0, "b": 1, "<image>": 2, "<ROUTER>": 3}
    assert match_entries(4, 4, None, ours).note() == ""
    assert match_entries(2, 4, None, ours).sources == (0, 1, None, None)
    for old, tokens in ((3, ours), (5, ours), (3, None)):
        with pytest.raises(ValueError, match=f"has {old} vocabulary entries and the model 4"):
            match_entries(old, 4, None, tokens)
    with pytest.raises(ValueError, match="no token in common"):
        match_entries(2, 4, {"x": 0, "y": 1}, ours)


def test_a_source_for_another_part_of_the_model(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"stem.0.weight": torch.ones(2, 3, 4, 4)}, file)
    with pytest.raises(ValueError, match=r"\(timm ConvNeXt\) has no weights for this model"):
        load(our_model(), file)
    tower = {k.removeprefix("model.vision_tower."): v for k, v in hf_llava().state_dict().items()}
    tower = {k: v for k, v in tower.items() if not k.startswith(("model.", "lm_head"))}
    save_file(tower, file)
    model = our_model()
    assert load(model, file).missing.keys() == {"language", "projector", "lm_head"}
    assert len(model.vision.model.encoder.layers) == TOWER["depth"] == LAYERS
    for name, tensor in model.vision.model.state_dict().items():
        assert torch.equal(tensor, tower[name])


def test_tensors_that_zero_left_empty_are_named_with_the_cause(tmp_path):
    """ZeRO stage 3 writes tensors of size 0 unless the weights are gathered first."""
    ours = our_model()
    state = {name: torch.zeros(0) for name in ours.state_dict()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(FileError, match=r"empty tensors \(.* and \d+ more\), as written by ZeRO"):
        load(ours, tmp_path)
    with pytest.raises(FileError, match=r"zero_to_fp32\.py"):
        load(ours, tmp_path, parts=("projector",))
