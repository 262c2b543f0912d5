"""Hugging Face configuration of the model, saved as its `config.json`."""

from collections.abc import Mapping
from typing import Any, Self

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from dpn.common.auto_classes import MODEL_TYPE
from dpn.common.errors import DPNError, FileError, SettingError
from dpn.common.text import one_line

#: Keys that make transformers fetch or change code, or read other files; never read from a file.
CODE_KEYS = frozenset(
    {"attn_implementation", "_attn_implementation", "experts_implementation"}
    | {"_experts_implementation", "fusion_config", "kernel_config", "transformers_weights"}
)
#: Sizes of which each unit is a module of its own.
DEPTHS = ("num_hidden_layers", "depth")
MAX_DEPTH = 1024
MAX_SIZE = 2**31


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
    #: Outputs that Hugging Face's Trainer does not gather, because they are no tensors.
    keys_to_ignore_at_inference = ["past_key_values", "trace"]  # noqa: RUF012

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
            check_sizes("text_config", self.text_config)
            values = without_code(self.text_config)
            self.text_config = AutoConfig.for_model(values.pop("model_type", "llama"), **values)
        self.vision_config = self.vision_config or {"name": "vit"}
        self.projector_config = self.projector_config or {"name": "mlp"}
        self.router_config = self.router_config or {"name": "none"}
        check_sizes("vision_config", self.vision_config)
        text: Any = self.text_config
        self.tie_word_embeddings = bool(text.tie_word_embeddings)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, folder: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a folder's `config.json` like Hugging Face.

        Raises:
            OSError: If the file does not exist or is not JSON.
            FileError: If it does not hold an object.
        """
        try:
            return super().get_config_dict(folder, **kwargs)
        except OSError:
            raise
        except Exception as error:  # a list, a number or deep nesting in place of an object
            raise FileError(
                f"{folder}/config.json does not hold a config; copy or write it again."
            ) from error

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Build a config from the content of a `config.json`, without the keys in `CODE_KEYS`.

        Raises:
            FileError: If it is the config of another model, or a value is invalid.
        """
        place = kwargs.get("name_or_path")
        file = f"{place}/config.json" if place else "config.json"
        check_settings(file, config_dict)
        try:
            return super().from_dict(without_code(config_dict), **kwargs)
        except DPNError as error:
            raise FileError(f"{file}: {error}") from error
        except Exception as error:  # text configs raise many types for values of wrong types
            raise FileError(
                f"{file} has an invalid value: {one_line(str(error))}; write the folder again."
            ) from error

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a config from a folder or the Hub; raises like `get_config_dict` and `from_dict`."""
        return super().from_pretrained(folder, *args, **{"name_or_path": str(folder), **kwargs})


def without_code(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without `CODE_KEYS`, in its sections, too."""
    return {
        key: without_code(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key not in CODE_KEYS
    }


def check_settings(file: str, values: Any) -> None:
    """Check the content of a `config.json` before a config is built from it.

    Args:
        file: Name of the file, for messages.
        values: Its content.

    Raises:
        FileError: If it is the config of another model, or a section is of a wrong type.
    """
    if not isinstance(values, dict):
        raise FileError(f"{file} holds a {type(values).__name__}, not an object; write it again.")
    kind = values.get("model_type")
    if kind != MODEL_TYPE:
        raise FileError(
            f"{file} has model_type={kind!r}, expected {MODEL_TYPE!r}; convert other models first"
            " (python tools/convert.py SRC DST)."
        )
    for section in ("text_config", "vision_config", "projector_config", "router_config"):
        if not isinstance(values.get(section), dict | None):
            raise FileError(f"{file} has a {section} that is not an object; write it again.")
    for section in ("vision_config", "projector_config", "router_config"):
        if (own := values.get(section)) and not isinstance(own.get("name"), str):
            raise FileError(f"{file} has a {section} without a name; write it again.")
    for key in ("image_token_id", "router_token_id"):
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise FileError(f"{file} has {key}={value!r}; it must be a token id.")


def check_sizes(section: str, values: Mapping[str, Any]) -> None:
    """Check that the sizes of a section are not so large that building it would never end.

    Raises:
        SettingError: If a size is too large.
    """
    for key, value in values.items():
        most = MAX_DEPTH if key in DEPTHS else MAX_SIZE
        if isinstance(value, int) and value > most:
            raise SettingError(f"{section}.{key}={value} is too large; the largest is {most}.")
