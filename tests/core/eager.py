"""Selection rules of the dropping methods as plain loops over one sample, on the stock model."""

import math

import torch
from transformers import AutoModelForCausalLM


class Eager:
    """The stock model with eager attention, run layer by layer on one sample.

    `rows` holds a (column, cell, position) per row; `cell` is None for text.

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
        """Return the attention map of a layer on the current hidden states, `[H, n, n]`."""
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
        """Return the places of the visual rows of each image that has some."""
        found = {}
        for i, (column, cell, _) in enumerate(self.rows):
            if cell is not None:
                found.setdefault(column, []).append(i)
        return found

    def drop(self, gone):
        self.put({i: [(self.hidden[i], self.rows[i])] for i in range(len(self.rows))}, gone)

    def put(self, instead, gone=()):
        """Replace rows: row i by the rows `instead[i]`, and those in `gone` by nothing."""
        new = []
        for i, row in enumerate(self.rows):
            if i not in gone:
                new += instead.get(i, [(self.hidden[i], row)])
        self.hidden = torch.stack([hidden for hidden, _ in new])
        self.rows = [row for _, row in new]

    def restart(self):
        self.rows = [(column, cell, i) for i, (column, cell, _) in enumerate(self.rows)]

    def last_row(self, end):
        """Return the place of the instruction's last row."""
        return max(i for i, row in enumerate(self.rows) if row[0] < end)

    def logits(self):
        """Return the logits of each column, None for columns without a row."""
        out = self.stock.lm_head(self.stock.model.norm(self.hidden))
        last = {row[0]: i for i, row in enumerate(self.rows)}
        return [out[last[c]] if c in last else None for c in range(self.columns)]


def lowest(values, places, count):
    """Return the `count` places with the lowest values; among equal values the later places."""
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


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def merge_half(eager, rows, remove):
    """Merge even rows of an image, most similar first, into odd ones; return the merged places."""
    best = {
        i: max((cosine(eager.hidden[i], eager.hidden[j]), -j) for j in rows[1::2])
        for i in rows[::2]
    }
    gone = sorted(best, key=lambda i: -best[i][0])[:remove]
    into = {j: [j, *(i for i in gone if -best[i][1] == j)] for j in rows[1::2]}
    means = {j: eager.hidden[group].mean(0) for j, group in into.items()}
    eager.put({j: [(mean, eager.rows[j])] for j, mean in means.items()}, gone)


def aim(eager, depth, entered, end):
    if depth == 0:
        for column, n in entered.items():
            goal = n - n // 2 - int(n * 0.1 + 1e-6)  # 0.5, then 0.1 of the entered rows are merged
            while len(rows := eager.images()[column]) > goal:
                merge_half(eager, rows, min(len(rows) - goal, len(rows) // 2))
        eager.restart()
        eager.merged = {column: len(rows) for column, rows in eager.images().items()}
    if depth in (2, 3):  # after layers 1 and 2 of two steps
        eager.hidden, attention = eager.before
        n = eager.last_row(end) + 1
        mass = torch.full((attention.shape[0], n), 1 / n)
        for _ in range(5):
            new = torch.zeros_like(mass)
            for head in range(len(mass)):
                for i in range(n):
                    logits = attention[head, i, : i + 1].log() / 0.1
                    new[head, : i + 1] += mass[head, i] * logits.softmax(-1)
            mass = new
        rank = (mass**2).mean(0).sqrt()
        gone = []
        for column, rows in eager.images().items():
            gone += lowest(rank, rows, len(rows) - int(eager.merged[column] * (3 - depth) / 2))
        eager.drop(gone)


def clusters_of(x, k):
    """Cluster rows by density peaks; return the rows of each of k clusters."""
    n = len(x)
    d = [[float((x[i] - x[j]).norm()) / x.shape[1] ** 0.5 for j in range(n)] for i in range(n)]
    density = [math.exp(-sum(v**2 for v in sorted(row)[:k]) / k) for row in d]
    furthest = max(max(row) for row in d)
    score = []
    for i in range(n):
        denser = [d[i][j] for j in range(n) if density[j] > density[i]]
        score.append(density[i] * min(denser, default=furthest))
    centres = sorted(range(n), key=lambda i: -score[i])[:k]
    groups = {c: [c] for c in centres}
    for i in set(range(n)) - set(centres):
        groups[min(centres, key=lambda c: d[c][i])].append(i)
    return list(groups.values())


def sparsevlm(eager, depth, entered, end):
    if depth == 0:
        first = min(eager.images())
        visual = [i for rows in eager.images().values() for i in rows]
        words = [i for i, (c, cell, _) in enumerate(eager.rows) if cell is None and first < c < end]
        dots = torch.stack([eager.hidden[words] @ eager.hidden[i] for i in visual])
        weight = dots.softmax(1).mean(0)
        mean = float(weight.mean())
        above = [i for i, w in zip(words, weight, strict=True) if w > mean] or words
        eager.raters = {eager.rows[i][0] for i in above}
    if depth in (1, 3):
        eager.hidden, attention = eager.before
        asked = [i for i, row in enumerate(eager.rows) if row[0] in eager.raters]
        score = attention.mean(0)[asked].mean(0)
        instead, gone = {}, []
        for column, rows in eager.images().items():
            kept = round(entered[column] * (0.5 if depth == 1 else 0.3))
            out = lowest(score, rows, len(rows) - kept)
            again = out[::-1][: int(len(out) * 0.3) + 1] if out else []
            new = []
            if again:
                groups = clusters_of(eager.hidden[again], int(len(again) / 10) + 1)
                for group in groups:
                    mean = eager.hidden[[again[i] for i in group]].mean(0)
                    new.append((mean, (column, -1, 0)))
            last = rows[-1]  # merged rows follow the remaining rows of the image
            instead[last] = ([] if last in out else [(eager.hidden[last], eager.rows[last])]) + new
            gone += [i for i in out if i != last]
        eager.put(instead, gone)


def dyvte(eager, depth, entered, end):
    if depth == 0 or not eager.images():
        return
    last, first = eager.last_row(end), min(eager.images())
    before = eager.rows[last][0]
    text = [i for i, (c, cell, _) in enumerate(eager.rows) if cell is None and first < c < before]
    read = torch.cat([eager.hidden[text or [last]].mean(0), eager.hidden[last]])
    one, _, two = eager.model.router.gates[str(depth - 1)]
    stay, leave = two.weight @ torch.nn.functional.gelu(one.weight @ read)
    if leave > stay:
        eager.drop([i for image in eager.images().values() for i in image])


RULES = {
    "dyvte": (dyvte, {"hidden": 8}, "keep"),
    "aim": (aim, {"merge": 0.4, "first": 1, "steps": 2}, "keep"),
    "sparsevlm": (sparsevlm, {"layers": [0, 2], "counts": [0.5, 0.3]}, "renumber"),
    "fastv": (fastv, {"k": 2, "ratio": 0.4}, "keep"),
    "vtw": (vtw, {"k": 3}, "keep"),
    "layer_drop": (vtw, {"k": 3}, "keep"),
    "pyramid_drop": (pyramid_drop, {"ratio": 0.7}, "renumber"),
}
