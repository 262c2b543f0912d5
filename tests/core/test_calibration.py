"""The share that `router.keep` asks for is met by argmax routes."""

import pytest

from dpn.calibration import calibrate, measured_share

from .conftest import collate, make_model, make_samples, without

ROUTERS = ({"name": "dpe", "layers": [0, 2], "min_rows": 1}, {"name": "dyvte", "hidden": 16})


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: router["name"])
@pytest.mark.parametrize("keep", [0.45, 0.7, 0.95])
def test_calibration_meets_keep(keep, router):
    model = make_model({**router, "keep": keep}, seed=3)
    batches = [without(collate(make_samples(seed=s)), "labels") for s in range(12)]
    assert calibrate(model, batches) == pytest.approx(keep, abs=0.05)
    assert measured_share(model, batches) == pytest.approx(keep, abs=0.05)


def test_calibration_needs_images():
    model = make_model({"name": "dpe", "layers": [0], "min_rows": 1, "keep": 0.5})
    with pytest.raises(ValueError, match="without images"):
        calibrate(model, [without(collate(make_samples([2])), "labels")])
