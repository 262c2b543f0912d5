"""The routers as plain loops, which change the rows of a `Naive` or what its layers compute."""

import math

import torch

from tests.core._vlm_routers import RANKING, SCORES
from tests.core.eager import clusters_of, cosine, lowest


def pool(naive, kernel, reduce):
    """Pool every block window by window; newline columns only among each other."""
    instead = {}
    for number, span in enumerate(naive.spans()):
        (h, w), tail = naive.grids[number]
        kh, kw = (1, kernel[0] * kernel[1]) if h == 1 else kernel
        bands = [range(x, min(x + kw, w - tail)) for x in range(0, w - tail, kw)]
        bands += [range(w - 1, w)] * tail
        new = []
        for top in range(0, h, kh):
            for band in bands:
                window = [span[y * w + x] for y in range(top, min(top + kh, h)) for x in band]
                rows = naive.hidden[window]
                value = rows.amax(0) if reduce == "max" else rows.mean(0)
                new.append((value, naive.joined(window)))
        instead |= {place: [] for place in span} | {span[0]: new}
        naive.grids[number] = ((-(-h // kh), len(bands)), tail)
    naive.put(instead)


def static(naive, depth, end, options):
    if depth - 1 in options["layers"]:
        pool(naive, options["kernels"], options.get("reduce", "max"))


def fastv(naive, depth, end, options):
    if depth == options["k"]:
        naive.hidden, attention = naive.before
        naive.deepstack(depth - 1)
        image = naive.image()
        count = len(image) - round(len(image) * (1 - options["ratio"]))
        naive.drop(lowest(attention.mean(0)[naive.last(end)], image, count))


def pyramid_drop(naive, depth, end, options):
    if depth in options["layers"]:
        score = naive.run(depth)[1].mean(0)[naive.last(end)]
        image = naive.image()
        left = int(len(naive.visual) * options["ratio"] ** (options["layers"].index(depth) + 1))
        naive.drop(lowest(score, image, len(image) - left))


def vtw(naive, depth, end, options):
    if depth == options["k"]:
        naive.drop(naive.image())


def aim(naive, depth, end, options):
    if depth == 0:
        for number, (_, (h, w), _) in enumerate(naive.blocks):
            goal = h * w - int(h * w * 0.5) - int(h * w * 0.1 + 1e-6)  # merge=0.4 in two rounds
            while len(rows := naive.spans()[number]) > goal:
                merge_half(naive, rows, min(len(rows) - goal, len(rows) // 2))
        naive.merged = len(naive.image())
    if depth in (2, 3):
        attention, n = naive.before[1], naive.last(end) + 1
        mass = torch.full((attention.shape[0], n), 1 / n)
        moves = (attention[:, :n, :n].log() / 0.1).softmax(-1)
        for _ in range(5):
            mass = (mass[:, :, None] * moves).sum(1)
        image = naive.image()
        left = int(naive.merged * (3 - depth) / 2)
        naive.drop(lowest((mass**2).mean(0).sqrt(), image, len(image) - left))


def merge_half(naive, rows, remove):
    """Merge even rows of a block, most similar first, into odd ones."""
    best = {
        i: max((cosine(naive.hidden[i], naive.hidden[j]), -j) for j in rows[1::2])
        for i in rows[::2]
    }
    gone = sorted(best, key=lambda i: -best[i][0])[:remove]
    into = {j: [j, *(i for i in gone if -best[i][1] == j)] for j in rows[1::2]}
    means = {j: [(naive.hidden[g].mean(0), naive.joined(g))] for j, g in into.items()}
    naive.put({**means, **{i: [] for i in gone}})


def sparsevlm(naive, depth, end, options):
    if depth == 0:
        stop = naive.visual[-1] + 1
        words = [i for i, (columns, b) in enumerate(naive.rows) if stop <= columns[0] < end]
        dots = naive.hidden[naive.image()] @ naive.hidden[words].T
        weight = dots.softmax(1).mean(0)
        above = [i for i, w in zip(words, weight, strict=True) if w > weight.mean()] or words
        naive.raters = {naive.rows[i][0][0] for i in above}
    if depth - 1 not in options["layers"]:
        return
    attention = naive.before[1]
    share = options["counts"][options["layers"].index(depth - 1)]
    asked = [i for i, (c, b) in enumerate(naive.rows) if b is None and c[0] in naive.raters]
    score, instead = attention.mean(0)[asked].mean(0), {}
    for (_, (h, w), _), rows in zip(naive.blocks, naive.spans(), strict=True):
        out = lowest(score, rows, len(rows) - round(h * w * share))
        again = out[::-1][: int(len(out) * 0.3) + 1]
        new = []
        for group in clusters_of(naive.hidden[again], int(len(again) / 10) + 1) if again else []:
            places = [again[i] for i in group]
            new.append((naive.hidden[places].mean(0), naive.joined(places)))
        instead |= {i: [] for i in out}
        last = rows[-1]
        instead[last] = instead.get(last, [(naive.hidden[last], naive.rows[last])]) + new
    naive.put(instead)


def random(naive, depth, end, options):
    """Pool by the kernels that the trace says were drawn."""
    for decision in naive.decisions:
        if decision.layer == depth - 1:
            height, width = map(int, decision.names[int(decision.experts[0])].split("x"))
            pool(naive, (height, width), "max")


def chain(naive, depth, end, options):
    for member in options["routers"]:
        RULES[member["name"]](naive, depth, end, member)


def near(naive, radius=None, window=None):
    """Return what visual rows see: the text before their block, and rows around them in it."""

    def sees(i, j):
        (columns, block), (others, other) = naive.rows[i], naive.rows[j]
        if other is None:
            return others[0] < columns[0]
        if block != other:
            return False
        span, width = naive.spans()[block], naive.grids[block][0][1]
        a, b = span.index(i), span.index(j)
        if window is not None:
            return 0 <= a - b <= window
        return max(abs(a // width - b // width), abs(a % width - b % width)) <= radius

    return sees


def within(name, naive, layer, options):
    """Return the arguments of `Naive.run` for a layer of a method that acts within layers."""
    found = {}
    if name == "neighbor_attention" or (name == "yopo" and layer < options["k"]):
        found["sees"] = near(naive, radius=options["radius"])
    if name == "sparse_ffn" and layer in options["layers"]:
        found["units"] = lambda block, active: range(48 // 3)
    if name == "yopo" and layer < options["k"]:
        found["units"] = lambda block, active: range(48 // 3)
    if name in ("head_pruning", "yopo") and layer >= {"head_pruning": 1, "yopo": 2}[name]:
        found["heads"] = [h for h, score in enumerate(SCORES[layer]) if score > 0.1]
    if name == "redundancy_lens":
        if layer in RANKING["attention"][: options["reduced"]]:
            found["sees"] = near(naive, window=options["window"])
        if layer in RANKING["ffn"][: options["reduced"]]:
            count = round(48 * options["ratio"])
            found["units"] = lambda block, active: most_active(naive, block, active, count)
    return found


def most_active(naive, block, active, count):
    """Return the units with the largest mean activation over every second row of a block."""
    span = naive.spans()[block]
    probes = max(1, len(span) // 2)
    places = [span[math.floor(i * (len(span) - 1) / max(probes - 1, 1))] for i in range(probes)]
    mean = active[places].abs().mean(0)
    return set(sorted(range(len(mean)), key=lambda u: -mean[u].item())[:count])


RULES = {
    "static": static,
    "random": random,
    "fastv": fastv,
    "pyramid_drop": pyramid_drop,
    "vtw": vtw,
    "layer_drop": vtw,
    "yopo": vtw,
    "aim": aim,
    "sparsevlm": sparsevlm,
    "chain": chain,
}
