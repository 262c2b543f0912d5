import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from dpn import DPNForConditionalGeneration
from dpn.checkpoints import convert, load
from dpn.checkpoints.lora import open_lora
from tests.checkpoints.conftest import as_original, hf_llava, text_config, write_tokenizer
from tests.checkpoints.folders import write_clip, write_config, write_shards
from tests.checkpoints.test_loading import our_model

TARGETS = ["q_proj", "down_proj"]


def adapted(model, rslora=False, **settings):
    """A peft model whose adapter has an effect."""
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=TARGETS, **settings
    )
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn_like(p) * 0.2)
    return model


def saved_lora(folder, base, rslora=False):
    """A LoRA run of LLaVA: adapters of the language model, the projector in full."""
    from transformers import LlamaForCausalLM

    state = hf_llava().state_dict()
    original = as_original(state)
    vicuna = {k: v for k, v in original.items() if "mm_projector" not in k and "tower" not in k}
    write_tokenizer(base)
    write_shards(base, vicuna)
    llama = LlamaForCausalLM(text_config())
    llama.load_state_dict(vicuna)
    model = adapted(llama, rslora)
    model.save_pretrained(folder, save_embedding_layers=False)
    file = folder / "adapter_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)})
    )
    trained = {k: v + 1 for k, v in original.items() if "mm_projector" in k}
    trained = {f"base_model.model.{k}": v for k, v in trained.items()}
    torch.save(trained, folder / "non_lora_trainables.bin")
    write_config(folder)
    clip = {k.split("vision_tower.")[1]: v for k, v in state.items() if "vision_tower" in k}
    write_clip(folder / "clip", clip)
    return model.merge_and_unload().state_dict(), trained


@pytest.mark.slow
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_as_peft_merges(rslora, tmp_path):
    merged, trained = saved_lora(tmp_path / "lora", tmp_path / "vicuna", rslora)
    reports = convert(tmp_path / "lora", tmp_path / "ours")
    assert [report.title for report in reports] == ["LLaVA", "CLIP"]
    model = DPNForConditionalGeneration.from_pretrained(tmp_path / "ours")
    got = model.language.state_dict()
    changed = 0
    for name, tensor in merged.items():
        if name.startswith("model.layers"):
            torch.testing.assert_close(got[name.removeprefix("model.")], tensor)
            changed += not torch.equal(tensor, as_original(hf_llava().state_dict())[name])
    assert changed == 8  # two matrices in each of four layers
    for name, tensor in trained.items():
        got = model.projector.layers.state_dict()[name.partition("mm_projector.")[2]]
        assert torch.equal(got, tensor)


def test_an_adapter_of_our_own_model(tmp_path):
    model = our_model()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    trained = adapted(model, modules_to_save=["projector"])
    with torch.no_grad():
        trained.base_model.model.projector.modules_to_save["default"].layers[0].bias.add_(1)
    trained.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    fresh = our_model(seed=8)
    load(fresh, tmp_path / "lora", base=tmp_path)
    want = trained.merge_and_unload().state_dict()
    for name, tensor in fresh.state_dict().items():
        torch.testing.assert_close(tensor, want[name], msg=name)


def test_adapters_that_cannot_be_merged_are_refused(tmp_path):
    lora, base = tmp_path / "lora", tmp_path / "vicuna"
    saved_lora(lora, base)
    file = lora / "adapter_config.json"
    settings = json.loads(file.read_text())
    for change, sentence in (
        ({"use_dora": True}, "sets use_dora, which is not merged here"),
        ({"rank_pattern": {"q_proj": 2}}, "sets rank_pattern"),
        ({"peft_type": "IA3"}, "peft_type=IA3; only LORA"),
    ):
        file.write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=sentence):
            open_lora(lora, base)
    file.write_text(json.dumps(settings))
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="vicuna, which is not a local folder; give"):
        load(our_model(), lora)
    weights = load_file(lora / "adapter_model.safetensors")
    save_file(
        {f"base_model.model.x{k[17:]}": v for k, v in weights.items()},
        lora / "adapter_model.safetensors",
    )
    with pytest.raises(ValueError, match=r"moved lacks xmodel\.layers\.0\.mlp.*adapter .*lora"):
        load(our_model(), lora, base=tmp_path / "moved")
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"looked for adapter_model\.safetensors, adapter_m"
    ):
        load(our_model(), lora, base=tmp_path / "moved")
