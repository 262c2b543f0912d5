"""The text model of a VLM as a plain loop over one sample, with the stock eager layers."""

import copy
from itertools import product

import torch

from tests.core._vlm_routers import LAYERS, ROUTERS, language
from tests.core._vlm_rules import RULES, within


class Naive:
    """The text model of a stock VLM, run layer by layer over a list of rows.

    Attributes:
        rows: For each row, the columns that it stands for and its block, None for text.
        hidden: Hidden states `[n, D]`.
        before: Hidden states and attention `[H, n, n]` of the layer that ran.
    """

    def __init__(self, model, inputs, blocks, positions="keep"):
        stock, seen = language(model), {}
        hook = stock.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
        )
        model(**{name: value for name, value in inputs.items() if name != "labels"})
        hook.remove()
        self.stock, self.head = copy.deepcopy(stock), model.lm_head
        self.stock.config._attn_implementation = "eager"
        self.hidden = seen["inputs_embeds"][0]
        columns = len(self.hidden)
        given = seen.get("position_ids")
        given = torch.arange(columns) if given is None else given
        self.positions = given.reshape(-1, columns)[-3:]
        self.planes, self.blocks, self.numbering = (
            seen.get("deepstack_visual_embeds"),
            blocks,
            positions,
        )
        self.visual = [c for start, (h, w), _ in blocks for c in range(start, start + h * w)]
        of_column = {
            c: number
            for number, (start, (h, w), _) in enumerate(blocks)
            for c in range(start, start + h * w)
        }
        self.rows = [([c], of_column.get(c)) for c in range(columns)]
        self.grids = [(grid, tail) for _, grid, tail in blocks]

    def spans(self):
        """Return the places of the rows of each block."""
        found = [[] for _ in self.blocks]
        for place, (_, block) in enumerate(self.rows):
            if block is not None:
                found[block].append(place)
        return found

    def image(self):
        return [place for span in self.spans() for place in span]

    def last(self, end):
        """Return the last row of the text before a column."""
        return max(i for i, (columns, _) in enumerate(self.rows) if columns[0] < end)

    def put(self, instead):
        """Replace row i by the list `instead[i]` of hidden states and rows."""
        new = []
        for i, row in enumerate(self.rows):
            new += instead.get(i, [(self.hidden[i], row)])
        self.hidden = torch.stack([hidden for hidden, _ in new])
        self.rows = [row for _, row in new]

    def drop(self, gone):
        self.put({i: [] for i in gone})

    def joined(self, places):
        """Return the columns of several rows together, and their block."""
        return sorted(c for i in places for c in self.rows[i][0]), self.rows[places[0]][1]

    def run(self, index, sees=None, heads=None, units=None):
        """Run a layer with eager attention.

        Args:
            index: Layer.
            sees: Function of a visual row and a row; whether the first one attends to the other.
            heads: Key/value heads in which visual rows take part.
            units: For each block, the units of the FFN that its rows use.
        """
        n, layer = len(self.rows), self.stock.layers[index]
        places = [columns[0] for columns, _ in self.rows]
        at = self.positions[:, places] if self.numbering == "keep" else torch.arange(n)[None]
        mask = torch.full((n, n), -1e30).triu(1)
        if sees is not None:
            for i, j in product(self.image(), range(n)):
                mask[i, j] = 0.0 if sees(i, j) else -1e30
        attention, size = layer.self_attn, layer.self_attn.head_dim
        image, weights, hooks = self.image(), [], []

        def without(width, kept):  # zeros in some units of visual rows
            gone = [u for u in range(width) if u not in kept]

            def change(x):
                x = x.clone()
                for i in image:
                    x[0, i, gone] = 0.0
                return x

            return change

        if heads is not None:
            group = attention.num_key_value_groups
            kept = [h * size + u for h in heads for u in range(size)]
            asked = [
                (h * group + g) * size + u for h in heads for g in range(group) for u in range(size)
            ]
            values = without(attention.v_proj.out_features, kept)
            outs = without(attention.o_proj.in_features, asked)
            hooks += [attention.v_proj.register_forward_hook(lambda m, args, out: values(out))]
            hooks += [attention.o_proj.register_forward_pre_hook(lambda m, args: (outs(args[0]),))]
        if units is not None:

            def narrow(module, args):
                x = args[0].clone()
                for number, span in enumerate(self.spans()):
                    used = units(number, args[0][0])
                    gone = [u for u in range(x.shape[-1]) if u not in used]
                    for i in span:
                        x[0, i, gone] = 0.0
                return (x,)

            hooks += [layer.mlp.down_proj.register_forward_pre_hook(narrow)]
        hooks += [attention.register_forward_hook(lambda m, args, out: weights.append(out[1]))]
        rotary = self.stock.rotary_emb(self.hidden[None], at if len(at) == 1 else at[:, None])
        out = layer(self.hidden[None], attention_mask=mask[None, None], position_embeddings=rotary)
        for hook in hooks:
            hook.remove()
        return (out[0] if isinstance(out, tuple) else out)[0], weights[0][0]

    def deepstack(self, index):
        """Add the features that follow a layer: for a visual row, the mean of its columns'."""
        if self.planes is not None and index < len(self.planes):
            self.hidden = self.hidden.clone()
            for i in self.image():
                cells = [self.visual.index(c) for c in self.rows[i][0]]
                self.hidden[i] += self.planes[index][cells].mean(0)

    def logits(self):
        """Return the logits of every text column."""
        out = self.head(self.stock.norm(self.hidden))
        return {columns[0]: out[i] for i, (columns, b) in enumerate(self.rows) if b is None}


@torch.no_grad()
def naive_logits(model, router, inputs, blocks, end, positions="keep", decisions=(), **further):
    """Run one sample.

    Args:
        model: Stock VLM.
        router: Name of the router.
        inputs: Arguments of the model.
        blocks: Blocks of the image, see `Sample`.
        end: Column after the prompt.
        positions: `keep` or `renumber`.
        decisions: Decisions of the trace, for `random`.
        **further: Settings in place of those in `ROUTERS`.

    Returns:
        Logits of each text column, and the number of visual rows that enter each layer.
    """
    naive, options = Naive(model, inputs, blocks, positions), {**ROUTERS[router], **further}
    naive.decisions, entered = decisions, []
    for depth in range(LAYERS + 1):
        if router in RULES:
            RULES[router](naive, depth, end, options)
        if depth < LAYERS:
            entered.append(len(naive.image()))
            hidden, attention = naive.run(depth, **within(router, naive, depth, options))
            naive.hidden = hidden
            naive.before = hidden, attention
            naive.deepstack(depth)
    return naive.logits(), entered
