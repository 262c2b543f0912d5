"""Write the two files of a new method: a class that works as it is, and its config.

    python tools/new_method.py NAME
    python tools/new_method.py --projector NAME

The first writes dpn/routers/NAME.py and configs/router/NAME.yaml, the second
dpn/projectors/NAME.py and configs/projector/NAME.yaml. Both keep every visual token until you
change which tokens they keep. `python -m dpn.train router=NAME`, `sweep=methods` and the contract
tests find them: `python -m pytest tests/core -k NAME`.
"""

import argparse
import keyword
from pathlib import Path

ROOT = Path(__file__).parents[1]

ROUTER = '''"""@TITLE@: what it does, in one sentence (name the paper, arXiv id)."""

from typing import Unpack

from torch import Tensor

from dpn.routers._dropping import DroppingRouter, last_instruction_rows, mean_attention
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import PackedTokens, Positions


class @CLASS@Router(DroppingRouter):
    """Keep a share of the visual rows before one layer; by default all of them.

    Args:
        layer: Layer before which rows are dropped; default: after the first quarter of the decoder.
        ratio: Share of an image's rows that are kept.
        positions: `renumber` or `keep`, see `dpn.tokens.packed.PackedTokens`.
        keep: Target share of visual MACs, met by choosing the ratio.
    """

    def __init__(
        self,
        layer: int | None = None,
        ratio: float = 1.0,
        positions: Positions = "renumber",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        self.layer = sizes["text"].num_layers // 4 if layer is None else layer
        super().__init__("pre", positions, ratio, (0.0, 1.0), keep, **sizes)

    def schedule(self, strength: float) -> dict[int, float]:
        """Share of an image's rows that is kept at each depth."""
        return {self.layer: strength}

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Attention that each visual row gets from the last instruction token."""
        return mean_attention(tokens, context, last_instruction_rows(tokens, context))
'''

ROUTER_CONFIG = """# @TITLE@: python -m dpn.train router=@NAME@ router.ratio=0.5
# With a target share of visual work: python -m dpn.train router=@NAME@ router.keep=0.5
name: @NAME@
layer: null  # null: a quarter of the decoder's depth
ratio: 1.0  # share of the visual rows that are kept
positions: renumber  # or keep
keep: null  # target share of visual MACs, instead of the ratio
"""

PROJECTOR = '''"""@TITLE@: what it does, in one sentence (name the paper, arXiv id)."""

import torch

from dpn.projectors._reduction import ReducingProjector, Rows, by_grid, chosen
from dpn.vision import ImageGroup, VisualFeatures


class @CLASS@Projector(ReducingProjector):
    """Keep evenly spaced visual tokens, then apply LLaVA's MLP.

    Args:
        keep: Share of the tower's tokens that enter the decoder.
        depth: Number of linear layers of the MLP.
    """

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return self.project(by_grid(features, self._choose))

    def _choose(self, group: ImageGroup) -> list[Rows]:
        count = self.rows(group.cells)
        places = torch.arange(count, device=group.tokens.device) * group.cells // count
        return chosen(group, places.expand(len(group.tokens), -1))
'''

PROJECTOR_CONFIG = """# @TITLE@: python -m dpn.train projector=@NAME@ projector.keep=0.5 router=none
name: @NAME@
keep: 1.0  # share of the tower's tokens that enter the decoder
"""

TEMPLATES = {"router": (ROUTER, ROUTER_CONFIG), "projector": (PROJECTOR, PROJECTOR_CONFIG)}


def write(kind: str, name: str, root: Path) -> list[Path]:
    """Write both files and return their paths.

    Args:
        kind: `router` or `projector`.
        name: Name of the method.
        root: Folder of the checkout.

    Raises:
        SystemExit: If the name is invalid or taken.
    """
    if not (name.isidentifier() and name == name.lower() and name[0] != "_" != name[-1]):
        raise SystemExit(
            f"{name!r} is not a valid name; use small letters, digits and _, e.g. my_method."
        )
    if keyword.iskeyword(name) or name == "base":
        raise SystemExit(f"{name!r} is reserved by Python or by dpn/{kind}s; use another name.")
    code, config = TEMPLATES[kind]
    filled = {
        root / "dpn" / f"{kind}s" / f"{name}.py": code,
        root / "configs" / kind / f"{name}.yaml": config,
    }
    for path in filled:
        if path.exists():
            raise SystemExit(f"{path.relative_to(root)} exists; use another name or remove it.")
    words = name.split("_")
    for path, text in filled.items():
        for mark, value in {
            "@NAME@": name,
            "@CLASS@": "".join(word.capitalize() for word in words),
            "@TITLE@": " ".join(words).capitalize(),
        }.items():
            text = text.replace(mark, value)
        path.write_text(text)
    return list(filled)


def main() -> None:
    """Command line of `python tools/new_method.py`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="name of the method, e.g. my_method")
    parser.add_argument("--projector", action="store_true", help="write a projector, not a router")
    arguments = parser.parse_args()
    kind = "projector" if arguments.projector else "router"
    for path in write(kind, arguments.name, ROOT):
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
