"""Calibration of methods whose share depends on the sample: they meet `keep`."""

import pytest

from dpn.cost import TextShape
from dpn.training.calibration import calibrate, measured_share

from .conftest import collate, make_model, make_samples, without

ROUTERS = ({"name": "dpe", "layers": [0, 2], "min_rows": 1}, {"name": "dyvte", "hidden": 16})


def batches_of(which):
    """Return two batches, each with samples of six seeds."""
    samples = [[s for n in range(6) for s in make_samples(which, seed=6 * k + n)] for k in (0, 1)]
    return [without(collate(batch), "labels") for batch in samples]


@pytest.mark.parametrize(
    ("router", "keep"), zip(ROUTERS, (0.45, 0.95), strict=True), ids=("dpe", "dyvte")
)
def test_calibration_meets_keep(router, keep):
    model = make_model({**router, "keep": keep}, seed=3)
    batches = batches_of(None)
    reached = calibrate(model, batches)
    assert reached == pytest.approx(keep, abs=0.05)
    assert measured_share(model, batches) == pytest.approx(keep, abs=0.05)
    text, shares = TextShape.from_config(model.config.text_config), []
    for batch in batches:
        trace = model(**batch).trace
        for base, *rows in zip(trace.base_rows, *trace.visual_rows, strict=True):
            if base:
                shares.append(text.visual_macs(rows) / text.visual_macs([base] * len(rows)))
    assert reached == pytest.approx(sum(shares) / len(shares))


@pytest.mark.parametrize("keep", [0.4, 0.8])
def test_dfmr_calibration_meets_the_share_of_tokens(keep):
    """Images have every contrast; the initial threshold would pool all of them."""
    projector = {"name": "dfmr", "kernels": [2], "threshold": 100.0, "keep": keep}
    model = make_model(projector=projector, seed=3)
    batches = batches_of([0, 1])
    assert calibrate(model, batches, "projector") == pytest.approx(keep, abs=0.05)
    shares = []
    for batch in batches:
        trace = model(**batch).trace
        for before, after in zip(trace.tower_grids, trace.grids, strict=True):
            shares.append(sum(h * w for h, w in after) / sum(h * w for h, w in before))
    assert sum(shares) / len(shares) == pytest.approx(keep, abs=0.05)


def test_calibration_needs_images():
    model = make_model({"name": "dpe", "layers": [0], "min_rows": 1, "keep": 0.5})
    with pytest.raises(ValueError, match="without images"):
        calibrate(model, [without(collate(make_samples([2])), "labels")])
