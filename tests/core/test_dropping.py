"""What the dropping methods select, against plain loops over one sample on the stock model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpn import routers
from dpn.budget import TextShape, meet
from dpn.routers.vtw import find_layer

from .conftest import collate, make_model, make_samples
from .test_router_contracts import without_labels

LLAVA = TextShape(32, 4096, 4096, 11008)
IMAGES = [0, 3, 4]  # samples whose images all stand in the instruction


class Eager:
    """The stock model layer by layer, one sample, eager attention; rows are (column, cell, place).

    Args:
        model: the model under test.
        positions: `keep` or `renumber`.
    """

    def __init__(self, model, positions):
        text = model.config.text_config
        self.stock = AutoModelForCausalLM.from_config(text, attn_implementation="eager").eval()
        self.stock.model.load_state_dict(model.language.state_dict())
        self.stock.lm_head.load_state_dict(model.lm_head.state_dict())
        self.model, self.positions = model, positions

    def start(self, ids, images):
        parts, rows, images = [], [], list(images)
        for column, token in enumerate(ids.tolist()):
            if token == self.model.config.image_token_id:
                pixels = images.pop(0)
                features = self.model.vision.features(pixels[None], [tuple(pixels.shape[1:])])
                new = self.model.projector(features).tokens
                rows += [(column, cell) for cell in range(len(new))]
            else:
                new = self.stock.model.embed_tokens.weight[token][None]
                rows.append((column, None))
            parts.append(new)
        self.rows = [(*row, place) for place, row in enumerate(rows)]
        self.hidden, self.columns = torch.cat(parts), len(ids)

    def attention(self, index):
        """`[H, n, n]` of a layer on the hidden states as they are."""
        return self.run(index)[1]

    def run(self, index):
        n = len(self.rows)
        kept = [place for _, _, place in self.rows]
        at = torch.tensor(kept if self.positions == "keep" else list(range(n)))[None]
        cos_sin = self.stock.model.rotary_emb(self.hidden[None], at)
        mask = torch.full((n, n), -1e30).triu(1)[None, None]
        weights = []
        layer = self.stock.model.layers[index]
        hook = layer.self_attn.register_forward_hook(lambda _, args, out: weights.append(out[1]))
        out = layer(self.hidden[None], attention_mask=mask, position_embeddings=cos_sin)[0]
        hook.remove()
        return out, weights[0][0]

    def images(self):
        """Places of the visual rows of each image that has some."""
        found = {}
        for i, (column, cell, _) in enumerate(self.rows):
            if cell is not None:
                found.setdefault(column, []).append(i)
        return found

    def drop(self, gone):
        stay = [i for i in range(len(self.rows)) if i not in set(gone)]
        self.rows = [self.rows[i] for i in stay]
        self.hidden = self.hidden[stay]

    def last_row(self, end):
        """The last row of the instruction."""
        return max(i for i, row in enumerate(self.rows) if row[0] < end)

    def logits(self):
        """Of each column whose row is there, else None."""
        out = self.stock.lm_head(self.stock.model.norm(self.hidden))
        last = {row[0]: i for i, row in enumerate(self.rows)}
        return [out[last[c]] if c in last else None for c in range(self.columns)]


def lowest(values, places, count):
    """The `count` of these places with the lowest value; of equal ones the later."""
    return sorted(places, key=lambda i: (values[i].item(), -i))[:count]


def fastv(eager, depth, entered, end):
    if depth != 2:
        return
    eager.hidden, attention = eager.before  # layer 1 ran
    score = attention.mean(0)[eager.last_row(end)]
    gone = []
    for image in eager.images().values():
        gone += lowest(score, image, len(image) - round(len(image) * 0.6))
    eager.drop(gone)


def vtw(eager, depth, entered, end):
    if depth == 3:
        eager.drop([i for image in eager.images().values() for i in image])


def pyramid_drop(eager, depth, entered, end):
    if depth not in (1, 2, 3):
        return
    score = eager.attention(depth).mean(0)[eager.last_row(end)]
    gone = []
    for column, image in eager.images().items():
        gone += lowest(score, image, len(image) - int(entered[column] * 0.7**depth))
    eager.drop(gone)


RULES = {
    "fastv": (fastv, {"k": 2, "ratio": 0.4}, "keep"),
    "vtw": (vtw, {"k": 3}, "keep"),
    "pyramid_drop": (pyramid_drop, {"ratio": 0.7}, "renumber"),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", [3, 4])
def test_a_method_does_what_a_plain_loop_does(name, seed):
    rule, arguments, positions = RULES[name]
    model = make_model({"name": name, **arguments}, seed=seed)
    samples = make_samples(IMAGES, seed=seed)
    out = model(**collate(samples))
    eager = Eager(model, positions)
    for b, (ids, labels, images) in enumerate(samples):
        end = int((labels != -100).nonzero()[0])
        eager.start(ids, images)
        entered = {column: len(image) for column, image in eager.images().items()}
        for depth in range(4):
            rule(eager, depth, entered, end)
            assert sum(map(len, eager.images().values())) == out.trace.visual_rows[depth][b]
            eager.before = eager.run(depth)
            eager.hidden = eager.before[0]
        for column, logits in enumerate(eager.logits()):
            if logits is not None:
                torch.testing.assert_close(out.logits[b, column], logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "cut"),
    [
        ("fastv", {"k": 2, "ratio": 0.5}, 0.474),
        ("fastv", {"k": 2, "ratio": 0.75}, 0.707),
        ("pyramid_drop", {}, 0.534),
        ("vtw", {}, 0.53125),
    ],
)
def test_what_the_published_settings_cut(name, arguments, cut):
    router = routers.build(name, **arguments, text=LLAVA, grid=(24, 24))
    assert 1 - router.share(router.strength) == pytest.approx(cut, abs=6e-4)
    assert router.check() == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fastv", {"k": 0}, "router.k=0 must be at least 1"),
        ("fastv", {"ratio": 1.5}, "own parameter is 1.5; it must be from 0.0 to 1.0"),
        ("fastv", {"k": 33}, "from 0 to 32"),
        ("fastv", {"keep": 0.05}, "its range here is 0.06 to 1.00"),
        ("vtw", {"k": 40}, "from 0 to 32"),
        ("pyramid_drop", {"layers": [8, 8]}, "without repeats"),
        ("pyramid_drop", {"layers": [16, 8]}, "must be ascending"),
    ],
)
def test_check_names_each_problem(name, arguments, message):
    found = routers.build(name, **arguments, text=LLAVA, grid=(24, 24)).check()
    assert any(message in problem for problem in found)


def test_meet_finds_a_share_that_rises_or_falls():
    assert meet(0.25, lambda x: x * x, 0, 1) == pytest.approx(0.5)
    assert meet(0.25, lambda x: 1 - x, 0, 1) == pytest.approx(0.75)
    assert meet(2.0, lambda x: x, 0, 1) == pytest.approx(1.0)


@torch.inference_mode()
def test_the_search_of_vtw_takes_the_first_layer_that_is_good_enough():
    model = make_model({"name": "static"}, seed=3)
    batches = [without_labels(make_samples([0, 3], seed=s)) for s in range(2)]
    own = model.router

    def divergence(k):
        each = []
        for batch in batches:
            model.router = routers.build("vtw", k=k, text=own.text, grid=own.grid)
            whole, part = model(**batch, compress=False).logits, model(**batch).logits
            for b, mask in enumerate(batch["attention_mask"]):
                p, q = (x[b, int(mask.sum()) - 1].softmax(-1) for x in (part, whole))
                each.append(float((p * (p / q).log()).sum()))
        return sum(each) / len(each)

    found = [divergence(k) for k in range(4)]
    model.router = own
    for eta in (min(found[1:]) * 0.99, sorted(found[1:])[1] * 1.01, max(found) * 1.01):
        good = [k for k in range(1, 4) if found[k] <= eta]
        assert find_layer(model, batches, eta=eta, first=1) == (good[0] if good else 4)
    assert model.router is own
