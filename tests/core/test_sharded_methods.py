"""Every method under FSDP2: two processes, each with half of every weight, get the gradients of one
process.
"""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from dpn import losses
from dpn.training.strategies import shard

from .conftest import collate, make_model, make_samples
from .test_projector_contracts import METHODS
from .test_projector_contracts import model_of as with_projector
from .test_router_contracts import ROUTERS, config_of

#: Samples of each of two processes; in the second step the first process has no image.
STEPS = (([0, 2], [1, 3, 4]), ([2], [0, 4]))


def make(family, name):
    if family == "router":
        return make_model(config_of(name), seed=3)
    return with_projector(METHODS[name])


def gradients(model, samples, numbers, items):
    """Return the full gradient of every weight; zeros where there is none."""
    model.train().zero_grad()
    ids = torch.tensor(numbers)
    model(**collate(samples), sample_ids=ids, num_items_in_batch=items).loss.backward()
    found = {}
    for name, weight in model.named_parameters():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        found[name] = getattr(gradient, "full_tensor", lambda whole=gradient: whole)()
    return found


def compare(family, name, mesh, rank):
    """Return a description of the differences."""
    whole, sharded = make(family, name), make(family, name)
    shard(sharded, losses.build("language", router=sharded.router), mesh, None)
    for parts in STEPS:
        numbers = [n for part in parts for n in part]
        samples = make_samples(numbers)
        items = sum(int((labels[1:] != -100).sum()) for _, labels, _ in samples)
        expected = gradients(whole, samples, numbers, items)
        got = gradients(sharded, make_samples(parts[rank]), parts[rank], items / 2)  # averaged
        for key, gradient in expected.items():
            if not torch.allclose(got[key], gradient, atol=1e-5, rtol=1e-3):
                return f"{family} {name}: {key} differs by {(got[key] - gradient).abs().max()}"
    return None


def work(rank, place, problems):
    """Run one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    methods = [("router", name) for name in ROUTERS] + [("projector", name) for name in METHODS]
    found = (compare(family, name, mesh, rank) for family, name in methods)
    problems.put([problem for problem in found if problem])
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_gradients_equal_those_of_one_process(tmp_path):
    context = mp.get_context("spawn")
    problems = context.SimpleQueue()
    mp.spawn(work, (tmp_path / "store", problems), nprocs=2)
    assert problems.get() + problems.get() == []
