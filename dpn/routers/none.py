"""No compression: every layer processes every visual row."""

from typing import Unpack

from dpn.routers.base import Router, RouterSizes


class NoRouter(Router):
    """Keeps all rows; `keep` is ignored."""

    acts = "nowhere"
    meets_keep = "never"
    ignores = ("keep",)

    def __init__(self, keep: float | None = None, **sizes: Unpack[RouterSizes]):
        super().__init__(**sizes)
