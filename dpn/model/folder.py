"""Reading a model folder: its config is checked before, its weights after the model is built."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from dpn.common.errors import DPNError, FileError, SettingError
from dpn.common.text import one_line
from dpn.model.configuration import DPNConfig, check_settings
from dpn.model.generation_settings import check_generation_settings

log = logging.getLogger(__name__)
#: Section of the config that each part of a model is built from.
SECTIONS = {"vision": "vision_config", "projector": "projector_config", "router": "router_config"}


class FolderMixin:
    """`from_pretrained` that refuses a folder whose weights do not fill the model."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None,
        *args: Any,
        config: DPNConfig | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Load a model like Hugging Face, but never with weights that the folder does not hold.

        Weights of a part may be missing only if this call changes the part's section of the config,
        for example by `router_config={"name": "fastv", "keep": 0.5}`.

        Args:
            folder: A folder, or a name on the Hub; None if `state_dict` is given.
            args: Further arguments of the model.
            config: Config to use in place of the folder's.
            ignore_mismatched_sizes: Whether weights of another shape are initialised anew.
            output_loading_info: Whether to return Hugging Face's loading information, too.
            options: Further arguments of Hugging Face's `from_pretrained`, and settings of the
                config to override.

        Raises:
            FileError: If the config is invalid, or a weight is missing, unknown, of another shape,
                NaN or infinite.
            OSError: If the folder or a file does not exist.
        """
        if folder is None:  # weights come as `state_dict`
            further = {"config": config, "ignore_mismatched_sizes": ignore_mismatched_sizes}
            options |= further | {"output_loading_info": output_loading_info}
            return super().from_pretrained(None, *args, **options)  # type: ignore[misc]
        if (Path(folder) / "adapter_config.json").is_file():  # transformers would follow its base
            raise FileError(
                f"{folder} holds an adapter (adapter_config.json); load its base model, then the"
                " adapter with peft.PeftModel.from_pretrained."
            )
        hub = ("revision", "cache_dir", "token", "local_files_only", "subfolder")
        where = {name: options[name] for name in hub if name in options}
        saved, _ = DPNConfig.get_config_dict(folder, **where)
        check_settings(f"{folder}/config.json", saved)
        try:
            with _own_report():
                model, info = super().from_pretrained(  # type: ignore[misc]
                    folder,
                    *args,
                    config=config,
                    ignore_mismatched_sizes=True,  # refused by name below
                    output_loading_info=True,
                    **options,
                )
        except SafetensorError as error:
            raise FileError(
                f"The weights in {folder} are damaged or incomplete ({one_line(str(error))}); copy"
                " or write them again."
            ) from error
        except OSError:
            raise
        except DPNError as error:
            if str(folder) in str(error):
                raise
            raise FileError(f"{folder}: {error}") from error
        except Exception as error:
            raise FileError(
                f"{folder} cannot be loaded as a model: {one_line(str(error))}. Check its"
                " config.json, and the arguments of from_pretrained."
            ) from error
        now = model.config.to_dict()
        changed = {
            part
            for part, section in SECTIONS.items()
            if (saved.get(section) or now[section]) != now[section]
        }
        check_weights(folder, model, info, changed, ignore_mismatched_sizes)
        _settle_generation(folder, model)
        _tell(folder, info)
        return (model, info) if output_loading_info else model


def check_weights(
    folder: str | Path,
    model: nn.Module,
    info: Mapping[str, Any],
    changed: Iterable[str] = (),
    any_size: bool = False,
) -> None:
    """Check that a folder's weights have filled a model, and that all of them are finite.

    Args:
        folder: Folder of the weights.
        model: The loaded model.
        info: Hugging Face's loading information.
        changed: Parts that were built with other settings than the folder's.
        any_size: Whether weights may have another shape.

    Raises:
        FileError: If a weight is missing, unknown, of another shape, NaN or infinite.
    """
    changed = {*changed}

    def own(names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if name.partition(".")[0] not in changed)

    shapes = {name: (tuple(have), tuple(want)) for name, have, want in info["mismatched_keys"]}
    problems = []
    if empty := [name for name in own(shapes) if 0 in shapes[name][0]]:
        problems.append(f"holds empty tensors ({_some(empty)}), {WHY_EMPTY}")
    elif not any_size and (wrong := own(shapes)):
        sizes = [f"{n} is {list(shapes[n][0])}, expected {list(shapes[n][1])}" for n in wrong]
        problems.append(f"does not fit its config.json: {_some(sizes)}")
    if missing := own(info["missing_keys"] - shapes.keys()):
        problems.append(f"lacks the weights {_some(missing)}")
    if unknown := own(info["unexpected_keys"]):
        problems.append(f"holds weights that the model does not have: {_some(unknown)}")
    if not problems and (odd := own(not_finite(model))):
        problems.append(f"holds NaN or infinite values: {_some(odd)}")
    if problems:
        raise FileError(f"{folder} {', and '.join(problems)}; copy or write the folder again.")


def _settle_generation(folder: str | Path, model: nn.Module) -> None:
    """Check the `generation_config.json` of a model; as in a new model, no answer holds an image.

    Raises:
        FileError: If an option has a wrong type or is out of range.
    """
    options: Any = model.generation_config
    try:
        check_generation_settings(vars(options))
    except SettingError as error:
        raise FileError(f"{folder}/generation_config.json: {error}") from error
    image: Any = model.config.image_token_id  # type: ignore[union-attr]
    if image not in (options.suppress_tokens or ()):
        options.suppress_tokens = [*(options.suppress_tokens or ()), image]


#: End of a sentence about tensors of size 0.
WHY_EMPTY = (
    "as written by ZeRO stage 3 without gathering the weights first; merge the checkpoint with the"
    " zero_to_fp32.py that DeepSpeed wrote beside it, or save it with"
    " stage3_gather_16bit_weights_on_model_save"
)


@torch.no_grad()
def not_finite(model: nn.Module) -> list[str]:
    """Return the names of the weights that hold a NaN or an infinite value."""
    return [
        name
        for name, weight in model.state_dict().items()
        if weight.is_floating_point()
        and weight.numel()
        and not weight.is_meta
        and not torch.isfinite(torch.stack(weight.aminmax())).all()
    ]


@contextmanager
def _own_report() -> Iterator[None]:
    """Hide Hugging Face's table of missing weights, which calls them newly initialised."""
    theirs = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    theirs.addFilter(keep)
    try:
        yield
    finally:
        theirs.removeFilter(keep)


def _tell(folder: str | Path, info: Mapping[str, Any]) -> None:
    """Log which weights of replaced parts are new or not used."""
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    for names, what in ((new, "initialised anew"), (info["unexpected_keys"], "not used")):
        if names:
            log.warning(
                "%s: weights of replaced parts are %s: %s", folder, what, _some(sorted(names))
            )


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
