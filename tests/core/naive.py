"""An independent implementation of the model: one sample at a time, plain loops, no packing.

It takes the weights from the model under test, and runs that model's tower and projector image by
image.
"""

import math

import torch


def rms(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, positions, theta):
    """Rotate `[n, H, d]`, in pairs (i, i + d / 2) as in Llama's checkpoints."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = positions[:, None].float() * frequency
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def layer(x, positions, p, text):
    """Run a Llama decoder layer on one sample, `[n, D]`."""
    heads, kv = text.num_attention_heads, text.num_key_value_heads
    d = text.hidden_size // heads
    h = rms(x, p["input_layernorm.weight"], text.rms_norm_eps)
    theta = text.rope_parameters["rope_theta"]
    q = rotate((h @ p["self_attn.q_proj.weight"].T).view(-1, heads, d), positions, theta)
    k = rotate((h @ p["self_attn.k_proj.weight"].T).view(-1, kv, d), positions, theta)
    v = (h @ p["self_attn.v_proj.weight"].T).view(-1, kv, d)
    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    outs = []
    for head in range(heads):
        group = head // (heads // kv)
        score = q[:, head] @ k[:, group].T / math.sqrt(d)
        outs.append(score.masked_fill(~causal, -math.inf).softmax(-1) @ v[:, group])
    x = x + torch.cat(outs, -1) @ p["self_attn.o_proj.weight"].T
    h = rms(x, p["post_attention_layernorm.weight"], text.rms_norm_eps)
    gate = torch.nn.functional.silu(h @ p["mlp.gate_proj.weight"].T)
    return x + (gate * (h @ p["mlp.up_proj.weight"].T)) @ p["mlp.down_proj.weight"].T


def pool(rows, grid, kernel, reduce):
    """Pool window by window; windows at the edge may be smaller."""
    (h, w), (kh, kw) = grid, kernel
    rows = rows.view(h, w, -1)
    out, first = [], []
    for top in range(0, h, kh):
        for left in range(0, w, kw):
            window = rows[top : top + kh, left : left + kw].flatten(0, 1)
            out.append(window.amax(0) if reduce == "max" else window.mean(0))
            first.append(top * w + left)
    return torch.stack(out), (-(-h // kh), -(-w // kw)), first


class Naive:
    """Naive implementation of a model.

    Args:
        model: the `DPNForConditionalGeneration` under test.
    """

    def __init__(self, model):
        self.model, self.config = model, model.config
        self.w = dict(model.named_parameters())

    def layer_weights(self, index):
        prefix = f"language.layers.{index}."
        return {k[len(prefix) :]: v for k, v in self.w.items() if k.startswith(prefix)}

    def gate(self, index, read):
        p = {
            k.split(f"gates.{index}.")[1]: v
            for k, v in self.w.items()
            if f"router.gates.{index}." in k
        }
        if "weight" in p:
            return read @ p["weight"].T
        x = torch.nn.functional.layer_norm(read, read.shape, p["0.weight"], p["0.bias"])
        return torch.nn.functional.gelu(x @ p["1.weight"].T) @ p["3.weight"].T

    def sample(self, ids, images, route=None, options=None, instruction_end=None):
        """Run one sample.

        Args:
            ids: token ids `[t]` without padding.
            images: list of images `[3, h, w]`.
            route: expert of each routed layer; None: the gates decide by argmax.
            options: options of the router.
            instruction_end: column after the instruction, for `token=last`.

        Returns:
            Logits `[t, vocabulary]` of each column of ids, and the route taken.
        """
        o = {
            "positions": "renumber",
            "reduce": "max",
            "min_rows": 1,
            "layers": (),
            "kernels": ((1, 1), (1, 2), (2, 2)),
            "temperature": 10.0,
            "token": "router",
            "read": "all",
            "where": "post",
            "scaled": True,
            **(options or {}),
        }
        text = self.config.text_config
        rows = []  # each: [vector, column, position]
        grids = {}
        images = list(images)
        for column, token in enumerate(ids.tolist()):
            if token == self.config.image_token_id:
                pixels = images.pop(0)
                features = self.model.vision.features(pixels[None], [tuple(pixels.shape[1:])])
                features = self.model.projector(features)
                grids[column] = features.grids[0]
                rows += [[v, column, None] for v in features.tokens]
            else:
                rows.append([self.w["language.embed_tokens.weight"][token], column, None])
        for position, row in enumerate(rows):
            row[2] = position
        taken = {}
        for index in range(text.num_hidden_layers):
            if o["where"] == "pre":
                rows, grids = self.route(index, rows, grids, ids, route, o, taken, instruction_end)
            x = torch.stack([r[0] for r in rows])
            if o["positions"] == "renumber":
                positions = torch.arange(len(rows))
            else:
                positions = torch.tensor([r[2] for r in rows])
            x = layer(x, positions, self.layer_weights(index), text)
            rows = [[v, r[1], r[2]] for v, r in zip(x, rows, strict=True)]
            if o["where"] == "post":
                rows, grids = self.route(index, rows, grids, ids, route, o, taken, instruction_end)
        last = {r[1]: r[0] for r in rows}  # the last row of a column stands for it
        x = torch.stack([last[c] for c in range(len(ids))])
        x = rms(x, self.w["language.norm.weight"], text.rms_norm_eps)
        return x @ self.w["lm_head.weight"].T, taken

    def route(self, index, rows, grids, ids, route, o, taken, instruction_end):
        if index not in o["layers"] or not grids:
            return rows, grids
        kernels = o["kernels"]
        count = sum(h * w for h, w in grids.values())
        if count < max(h * w for h, w in kernels):
            return rows, grids
        read = (
            [r[0] for r in rows if ids[r[1]] == self.config.router_token_id]
            if o["token"] == "router"
            else []
        )
        if not read:
            end = len(ids) if instruction_end is None else instruction_end
            read = [[r[0] for r in rows if r[1] == end - 1][-1]]
        if o["read"] == "first":
            read = read[:1]
        chance = torch.ones(len(kernels))
        if o["scaled"]:
            chance = (self.gate(index, torch.stack(read).mean(0)) / o["temperature"]).softmax(-1)
        left = [sum(-(-h // kh) * -(-w // kw) for h, w in grids.values()) for kh, kw in kernels]
        allowed = [n >= min(o["min_rows"], max(left)) for n in left]
        if route is not None:
            expert = route[index]
            assert allowed[expert]
        else:
            expert = max((p.item(), -e) for e, p in enumerate(chance) if allowed[e])[1] * -1
        taken[index] = expert
        new_rows, new_grids = [], {}
        done = set()
        for row in rows:
            column = row[1]
            if column not in grids:
                new_rows.append(row)
            elif column not in done:
                done.add(column)
                mine = [r for r in rows if r[1] == column]
                pooled, grid, first = pool(
                    torch.stack([r[0] for r in mine]), grids[column], kernels[expert], o["reduce"]
                )
                if o["scaled"]:
                    pooled = pooled * chance[expert]
                new_grids[column] = grid
                new_rows += [[v, column, mine[f][2]] for v, f in zip(pooled, first, strict=True)]
        return new_rows, new_grids


def cross_entropy_sum(logits, labels):
    """Return the sum over supervised tokens of a sample, each predicted by the column before it."""
    total = logits.new_zeros(())
    for t in range(1, len(labels)):
        if labels[t] != -100:
            total = total - logits[t - 1].log_softmax(-1)[labels[t]]
    return total
