"""The page of a comparison: one file with all scripts, numbers and pictures, for offline use.

All text from runs is escaped by the template; `template/` holds its parts.
"""

import base64
import io
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from dpn.common.files import write_text
from dpn.metrics import route_shares
from dpn.reports import comparison_tables as tables
from dpn.reports.charts import Chart
from dpn.reports.comparison import Comparison, DataSet
from dpn.reports.drawing import COLOURS, MARKS, figure
from dpn.reports.overlays import read_overlay
from dpn.reports.points import Point
from dpn.reports.tables import by_difficulty

log = logging.getLogger(__name__)
_PARTS = Path(__file__).with_name("template")
#: Most pictures of one point, and most bytes of all, so that the page can be sent by mail.
SAMPLES, BYTES = 4, 9_000_000
OVERLAYS = "figures/overlays/*.png"


@dataclass(frozen=True)
class HeldOutImage:
    """A held-out image and what was kept of it.

    Attributes:
        point: Point whose model answered.
        words: Question, answer and route.
        panels: Data URLs of the pictures by their titles.
    """

    point: Point
    words: Sequence[str]
    panels: Mapping[str, str]


def write_page(found: Comparison, charts: Mapping[int, Sequence[Chart]], path: Path) -> Path:
    """Write the page and return its path.

    Args:
        found: Runs to show.
        charts: Charts of each data set, by its number.
        path: HTML file to write.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    world = Environment(
        loader=FileSystemLoader(_PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    points = found.points
    every = [chart for own in charts.values() for chart in own]
    drawn = {chart.name: figure(chart, found.methods).to_plotly_json() for chart in every}
    routes = {one.number: list(_routes(one.points)) for one in found.data_sets}
    samples = _samples(points)
    page = world.get_template("page.html").render(
        counts=tables.summary(found.runs, points),
        methods=found.methods,
        colours=COLOURS,
        marks=MARKS,
        data_sets=found.data_sets,
        tables=tables,
        charts={chart.name: chart for chart in every},
        names={number: [chart.name for chart in own] for number, own in charts.items()},
        figures=drawn,
        routes=routes,
        samples=samples,
        places=partial(_places, routes=routes, samples=samples),
        left_out=found.left_out,
        plotly=get_plotlyjs(),
    )
    write_text(path, page)
    return path


def _places(
    data_set: DataSet,
    routes: Mapping[int, Sequence["RouteShares"]],
    samples: Sequence[HeldOutImage],
) -> list[tuple[str, str]]:
    """Id, without the data set's suffix, and title of each section of a data set."""
    every = {
        "accuracy": ("Accuracy and cost", True),
        "methods": ("Methods", True),
        "budgets": ("Best per budget", True),
        "layers": ("Rows by layer", True),
        "routes": ("Routes", bool(routes[data_set.number])),
        "training": ("Training", True),
        "samples": ("Samples", any(sample.point in data_set.points for sample in samples)),
        "settings": ("Settings", True),
    }
    return [(name, title) for name, (title, is_there) in every.items() if is_there]


@dataclass(frozen=True)
class RouteShares:
    """Routes of a point's prompts.

    Attributes:
        point: Point whose prompts these are.
        layers: Layers at which the router chooses.
        experts: Chosen experts, each with a number.
        groups: Name of each family and difficulty, its number of prompts, and their shares by layer
            and expert.
    """

    point: Point
    layers: Sequence[str]
    experts: Mapping[str, int]
    groups: Sequence[tuple[str, int, Mapping[str, Mapping[str, float]]]]


def _routes(points: Sequence[Point]) -> Iterator[RouteShares]:
    """Routes of each point whose router chooses."""
    for point in points:
        seeing = [row for row in point.rows if row["base_rows"] and row["route"]]
        if seeing:
            every = sorted({expert for row in seeing for expert in row["route"].values()})
            experts = {expert: number for number, expert in enumerate(every)}
            groups = by_difficulty(seeing).items()
            shares = [(name, len(rows), route_shares(rows)) for name, rows in groups]
            yield RouteShares(point, list(route_shares(seeing)), experts, shares)


def _samples(points: Sequence[Point]) -> list[HeldOutImage]:
    """Pictures of each point's first run that has some; first one of every point, then another."""
    files = [_pictures(point) for point in points]
    found: list[tuple[int, HeldOutImage]] = []
    left = BYTES
    for turn, (number, point) in itertools.product(range(SAMPLES), enumerate(points)):
        if turn < len(files[number]):
            sample = _sample(point, files[number][turn])
            left -= sum(map(len, sample.panels.values()))
            if left < 0:
                log.warning("The page leaves pictures out, from %s on.", files[number][turn])
                break
            found.append((number, sample))
    return [sample for _, sample in sorted(found, key=lambda item: item[0])]


def _pictures(point: Point) -> list[Path]:
    every = (sorted(run.folder.glob(OVERLAYS)) for run in point.runs)
    return next(filter(None, every), [])


def _sample(point: Point, file: Path) -> HeldOutImage:
    try:
        panels, words = read_overlay(file)
    except (OSError, SyntaxError, ValueError) as problem:  # what Pillow raises
        return HeldOutImage(point, [f"{file} cannot be read: {problem}"], {})
    return HeldOutImage(point, words, {title: _embedded(panel) for title, panel in panels.items()})


def _embedded(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
