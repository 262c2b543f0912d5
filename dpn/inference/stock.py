"""Load stock Hugging Face VLMs with their processors, and build their inputs."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dpn.common import hub
from dpn.common.errors import FileError, SettingError
from dpn.common.json_files import read_object
from dpn.common.text import one_line, shorten
from dpn.families import family_of
from dpn.inference.answering import device_of

Dtype = Literal["float32", "bfloat16", "float16"]
#: Packages that some processors need, in addition to those of dpn.
EXTRAS = ("torchvision", "num2words")


def stock_config(name: str) -> Any:
    """Return the config of a Hugging Face VLM whose family `dpn.compress` supports.

    Args:
        name: Folder or Hub id.

    Raises:
        FileError: If the folder holds no model, or its config is damaged.
        SettingError: If the family is not supported.
    """
    folder = hub.find(name, weights=False)
    values = read_object(folder / "config.json")
    if values is None:
        raise FileError(
            f"{name} holds no model: there is no config.json; give the folder or Hub id of a"
            " Hugging Face model."
        )
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:  # transformers would only suggest remote code
        family_of(SimpleNamespace(model_type=kind))
    config = _loaded(name, AutoConfig.from_pretrained, folder)
    family_of(config)
    return config


def load_stock(name: str, dtype: Dtype = "float32", device: str = "auto") -> Any:
    """Load a Hugging Face VLM, in eval mode.

    Args:
        name: Folder or Hub id.
        dtype: Dtype of the weights.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        FileError: If the model cannot be loaded, or weights are missing in the folder.
        OSError: If the device is not available.
    """
    place, folder = device_of(device), hub.find(name)
    model, found = _loaded(
        name,
        AutoModelForImageTextToText.from_pretrained,
        folder,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    if missing := sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}):
        raise FileError(
            f"{name} lacks {len(missing)} weights of its model or has them in another shape, e.g."
            f" {missing[0]}; download it again."
        )
    return model.to(place).eval()


def load_processor(name: str) -> Any:
    """Load the processor of a Hugging Face VLM.

    Args:
        name: Folder or Hub id.

    Raises:
        SettingError: If there is none, or it needs a package that is not installed.
    """
    folder = hub.find(name, weights=False)
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what is raised without torchvision differs between processors
        raise SettingError(_no_processor(name, folder, one_line(str(error)))) from error
    if not hasattr(processor, "image_processor"):
        raise SettingError(_no_processor(name, folder, "it has a tokenizer only"))
    if getattr(processor, "chat_template", None) is None:
        raise SettingError(
            f"The processor of {name} has no chat template, which marks the image in a prompt; add"
            " the chat_template.jinja of the model that it was made from."
        )
    return processor


def _no_processor(name: str, folder: Path, reason: str) -> str:
    files = ("processor_config.json", "preprocessor_config.json")
    if not any((folder / file).is_file() for file in files):
        return (
            f"{name} holds no processor (neither {' nor '.join(files)}); save it there with"
            " AutoProcessor.from_pretrained(ORIGINAL).save_pretrained(FOLDER)."
        )
    missing = [package for package in EXTRAS if find_spec(package) is None]
    missing = [package for package in missing if package in reason.lower()] or missing
    fix = f"install what it needs: pip install {' '.join(missing)}" if missing else ""
    return (
        f"The processor of {name} cannot be loaded ({shorten(reason.rstrip('.'), 120)});"
        f" {fix or 'download its files again'}."
    )


def stock_inputs(processor: Any, image: Image.Image, prompt: str) -> Any:
    """Return the inputs of a question about an image, a `BatchFeature` with one sample.

    Args:
        processor: Processor of a Hugging Face VLM with a chat template.
        image: The image.
        prompt: The question.
    """
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )


def _loaded(name: str, load: Any, folder: Path, **options: Any) -> Any:
    """Call a `from_pretrained`, and name the model where it fails."""
    try:
        return load(folder, trust_remote_code=False, **options)
    except Exception as error:  # transformers and safetensors raise many types on damaged files
        raise FileError(
            f"{name} cannot be loaded ({shorten(str(error).rstrip('.'), 300)}); check its files,"
            " or download it again."
        ) from error
