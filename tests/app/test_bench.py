"""`dpn.bench`: what the formulas say, and that both models run."""

from dpn.bench import bench
from dpn.launch import compose

SMALL = (
    "model.text.hidden_size=16",
    "model.text.intermediate_size=32",
    "model.text.num_hidden_layers=4",
    "model.text.num_attention_heads=2",
    "model.vision.width=16",
    "model.vision.depth=1",
    "model.vision.heads=2",
    "text_columns=8",
    "batch_size=2",
    "pairs=2",
)


def measured(*overrides):
    return bench(compose("bench", [*SMALL, *overrides]))


def test_no_compression_is_the_measure_itself():
    found = measured("router=none", "train=false")
    assert found["cost/prefill_flops_ratio"] == found["cost/visual_macs_ratio"] == 1
    assert found["rows"] == [64] * 4
    assert "time/train_step" not in found


def test_a_projector_is_compared_with_llavas():
    found = measured("router=none", "projector=random", "projector.keep=0.25", "train=false")
    assert found["rows"] == [16] * 4
    assert found["cost/prefill_flops_ratio"] < 0.7


def test_both_models_are_timed():
    found = measured("router=static", "router.layers=[1]", "router.kernels=[2,2]")
    assert found["rows"] == [64, 64, 16, 16]
    for name in ("time/prefill", "time/train_step"):
        assert found[name].pairs == 2
        assert found[name].candidate_ms > 0 < found[name].baseline_ms
    assert found["cost/prefill_flops_ratio"] < 0.9
