import torch

from dpn.training import lora
from tests.core.conftest import collate, make_model, make_samples


def test_merged_updates_give_the_same_outputs():
    model, batch = make_model({"name": "static", "kernels": [2, 2]}), collate(make_samples())
    names, before = set(model.state_dict()), model(**batch).logits
    lora.add(model.language, rank=4, alpha=8, dropout=0.0)
    torch.testing.assert_close(model(**batch).logits, before)  # updates are initially zero

    model.train()(**batch).loss.backward()
    learns = {n for n, p in model.language.named_parameters() if p.grad is not None}
    assert {n for n in learns if "lora_" not in n} == set()
    assert len(learns) == 4 * 7 * 2  # layers, linear layers of each, two factors
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    beside = model.eval()(**batch).logits
    assert not torch.allclose(beside, before, atol=1e-2)

    lora.merge(model.language)
    torch.testing.assert_close(model(**batch).logits, beside, atol=1e-5, rtol=1e-4)
    assert set(model.state_dict()) == names
    merged = model(**batch).logits
    lora.merge(model.language)  # nothing to merge
    torch.testing.assert_close(model(**batch).logits, merged, atol=0, rtol=0)
