"""MuonAdamW equals the two optimizers run side by side."""

import copy

import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from dpn.training.optim import MuonAdamW


def groups(net):
    return [
        {"params": [net[0].weight, net[2].weight], "hidden": True},
        {"params": [net[0].bias, net[2].bias], "weight_decay": 0.0},
    ]


def train(net, steps, *optimizers, start=0):
    for step in range(start, start + steps):
        torch.manual_seed(step)
        net(torch.randn(8, 6)).square().mean().backward()
        for each in optimizers:
            each.step()
        net.zero_grad()


def test_equals_both_side_by_side_and_resumes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 4))
    twin, third = copy.deepcopy(net), copy.deepcopy(net)
    ours = MuonAdamW(groups(net), lr=0.05, other_lr=0.01, weight_decay=0.1)
    muon = Muon([twin[0].weight, twin[2].weight], lr=0.05, weight_decay=0.1, momentum=0.95)
    adamw = AdamW([twin[0].bias, twin[2].bias], lr=0.01, weight_decay=0.0, betas=(0.9, 0.95))
    schedules = [LambdaLR(o, lambda s: 1 / (s + 1)) for o in (ours, muon, adamw)]
    train(net, 3, ours)
    train(twin, 3, muon, adamw)
    for schedule in schedules:
        schedule.step()
    saved, weights = copy.deepcopy(ours.state_dict()), copy.deepcopy(net.state_dict())
    train(net, 3, ours, start=3)
    train(twin, 3, muon, adamw, start=3)
    resumed = MuonAdamW(groups(third))
    third.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(third, 3, resumed, start=3)
    for a, b, c in zip(net.parameters(), twin.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
