"""No compression: every visual row goes through every layer."""

from typing import Unpack

from dpn.routers.base import Router, RouterSizes


class NoRouter(Router):
    """The same path as every other method, with no decisions; `keep` is accepted and ignored."""

    acts = "nowhere"
    meets_keep = "never"
    ignores = ("keep",)

    def __init__(self, keep: float | None = None, **sizes: Unpack[RouterSizes]):
        super().__init__(**sizes)
