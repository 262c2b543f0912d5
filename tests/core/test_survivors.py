"""Cells that still have a row, against the counts of the trace."""

import numpy as np
import pytest

from dpn.inference.survivors import survivors

from .conftest import collate, make_model, make_samples, without

STATIC = {"name": "static", "layers": [0, 2], "kernels": [[2, 2], [1, 2]], "min_rows": 1}
FASTV = {"name": "fastv", "keep": 0.7}
VTW = {"name": "vtw", "k": 2}


@pytest.mark.parametrize("router", [None, STATIC, FASTV, VTW])
def test_rows_of_cells_agree_with_the_trace(router):
    model = make_model(router, seed=3)
    ids, _, images = make_samples([1])[0]
    batch = without(collate([(ids, ids, images)]), "labels")
    trace = model(**batch).trace
    layers = survivors(model, batch)
    for owners, (rows,) in zip(layers, trace.visual_rows, strict=True):
        assert sum(len(np.unique(owner[owner >= 0])) for owner in owners) == rows
        assert [owner.shape for owner in owners] == list(trace.grids[0])
    assert "at" not in vars(model.router)


def test_pooled_cells_share_their_row():
    model = make_model(STATIC, seed=3)
    ids, _, images = make_samples([0])[0]
    layers = survivors(model, without(collate([(ids, ids, images)]), "labels"))
    first, pooled = layers[0][0], layers[1][0]
    assert len(np.unique(first)) == first.size
    height, width = (side // 2 * 2 for side in pooled.shape)
    blocks = pooled[:height, :width].reshape(height // 2, 2, width // 2, 2)
    assert (blocks == blocks[:, :1, :, :1]).all()
