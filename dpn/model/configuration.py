"""Hugging Face configuration of the model, saved as its `config.json`."""

from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from dpn.common.auto_classes import MODEL_TYPE


class DPNConfig(PreTrainedConfig):
    """Configuration of `DPNForConditionalGeneration`.

    Attributes:
        text_config: Config of any Llama-like Hugging Face text model.
        vision_config: Name of a file in dpn/vision (key `name`) and arguments of its tower.
        projector_config: Name of a file in dpn/projectors (key `name`) and arguments of its
            projector.
        router_config: Name of a file in dpn/routers (key `name`) and arguments of its router.
        image_token_id: Id of `<image>`, which stands once per image in `input_ids`.
        router_token_id: Id of `<ROUTER>`; None if it is not used.
    """

    model_type = MODEL_TYPE

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | None = None
    projector_config: dict | None = None
    router_config: dict | None = None
    image_token_id: int = 32000
    router_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("llama")
        elif isinstance(self.text_config, dict):
            values = dict(self.text_config)
            self.text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        self.vision_config = self.vision_config or {"name": "vit"}
        self.projector_config = self.projector_config or {"name": "mlp"}
        self.router_config = self.router_config or {"name": "none"}
        text: Any = self.text_config
        self.tie_word_embeddings = bool(text.tie_word_embeddings)
        super().__post_init__(**kwargs)
