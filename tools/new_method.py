"""Start a method of your own: a router and its config, complete, that lets every row go on.

    python tools/new_method.py NAME

Writes dpn/routers/NAME.py and configs/router/NAME.yaml. Change what the file says about where rows
are dropped, how many and which; `python -m dpn.train router=NAME` and the contract tests
(`python -m pytest tests/core/test_router_contracts.py -k NAME`) find it as it is.
"""

import argparse
import keyword
from pathlib import Path

ROOT = Path(__file__).parents[1]

ROUTER = '''"""@TITLE@: what it does, in a line (name the paper, arXiv id)."""

from torch import Tensor

from dpn.cost import TextShape
from dpn.routers._dropping import DroppingRouter, last_instruction_rows, mean_attention
from dpn.routers.base import RoutingContext
from dpn.tokens import Grid, PackedTokens, Positions


class @CLASS@Router(DroppingRouter):
    """Before a layer lets a share of the visual rows go on; as it stands, all of them.

    Args:
        layer: where rows are dropped; default: after the first quarter of the decoder.
        ratio: share of an image's rows that goes on.
        positions: `renumber` or `keep`, see `dpn.tokens.packed.PackedTokens`.
        keep: share of visual MACs to meet instead, by choosing the ratio.
    """

    def __init__(
        self,
        layer: int | None = None,
        ratio: float = 1.0,
        positions: Positions = "renumber",
        keep: float | None = None,
        *,
        text: TextShape,
        grid: Grid,
    ):
        self.layer = text.num_layers // 4 if layer is None else layer
        super().__init__("pre", positions, ratio, (0.0, 1.0), keep, text=text, grid=grid)

    def schedule(self, strength: float) -> dict[int, float]:
        """The share that goes on from each depth."""
        return {self.layer: strength}

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Which rows go on: those that the last instruction row attends to most."""
        return mean_attention(tokens, context, last_instruction_rows(tokens, context))
'''

CONFIG = """# @TITLE@: python -m dpn.train router=@NAME@ router.ratio=0.5
# The same at a share of visual work: python -m dpn.train router=@NAME@ router.keep=0.5
name: @NAME@
layer: null  # null: a quarter of the decoder's depth
ratio: 1.0  # share of the visual rows that goes on
positions: renumber  # or keep
keep: null  # share of visual MACs to meet, instead of the ratio
"""


def write(name: str, root: Path) -> list[Path]:
    """Write both files.

    Raises:
        SystemExit: if the name is none, or taken.
    """
    if not (name.isidentifier() and name == name.lower() and name[0] != "_" != name[-1]):
        raise SystemExit(f"{name!r} is no name; take small letters, digits and _, e.g. my_method.")
    if keyword.iskeyword(name) or name == "base":
        raise SystemExit(f"{name!r} is taken by Python or by dpn/routers; take another one.")
    words = name.split("_")
    filled = {
        root / "dpn" / "routers" / f"{name}.py": ROUTER,
        root / "configs" / "router" / f"{name}.yaml": CONFIG,
    }
    for path in filled:
        if path.exists():
            raise SystemExit(f"{path.relative_to(root)} exists; take another name or remove it.")
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
    """Read the name and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    for path in write(parser.parse_args().name, ROOT):
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
