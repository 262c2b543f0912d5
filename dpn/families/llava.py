"""LLaVA-1.5 and VipLLaVA: one square grid for each image."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dpn.families._towers import llava_attention
from dpn.families.base import Block, Family, Image, Part, TowerAttention, square, whole_blocks


class Llava(Family):
    """One block for each image, of the vision tower's patches."""

    model_types = ("llava", "vipllava")

    def layout(
        self, model: Any, kind: str, arguments: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Image]:
        return [(Block(square(n)),) for n in tokens]

    def attention(self, inner: Any, after: int) -> TowerAttention | None:
        return llava_attention(inner, after)

    def parts(
        self,
        inner: Any,
        kind: str,
        arguments: Mapping[str, Any],
        images: Sequence[Image],
        patches: Sequence[Tensor],
    ) -> list[list[Part]]:
        (values,) = patches
        return whole_blocks(values)

    def reference(self, config: Any) -> Image:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return (Block((side, side)),)

    def refuse(self, config: Any) -> str | None:
        if config.vision_config.model_type == "pixtral":
            return "the lines of its images are separated by tokens of the vocabulary."
        return None
