"""Hold `dpn.compress` against the stock model, on your own checkpoint.

    python -m dpn.verify model=hf model.id=HuggingFaceTB/SmolVLM-256M-Instruct
    python -m dpn.verify model=hf model.id=FOLDER image=FILE prompt="What is this?" keep=0.25
    python -m dpn.verify model=hf model.id=FOLDER router=pyramid_drop model.dtype=bfloat16

The model answers a question about an image in three ways. `router=none` has to equal the stock
model. A method that drops visual rows has to equal the stock model whose attention masks hide the
same columns from the same layers on, and FastV's choice has to be that of the stock model's
attention. The time of a prefill is measured in turn with the stock model's. The exit status is 1 if
something differs by more than rounding.
"""

# Functions import what needs torch, so that `--help` and a misspelt name are answered before.

import json
from typing import TYPE_CHECKING, Any

from dpn.cli.door import front_door
from dpn.common import early_stop
from dpn.runs.request import Request

if TYPE_CHECKING:
    from dpn.measure.verification import Verification


@front_door("verify")
def main(request: Request) -> None:
    """Command line of `python -m dpn.verify`."""
    from dpn.common.table import terminal
    from dpn.measure.verification import Disagreement
    from dpn.measure.verification_report import figures, table, verdict

    found = verify(request)
    console = terminal()
    table(found).show(console)
    console.print(f"Visual rows in each layer: {' '.join(map(str, found.rows))}")
    console.print(verdict(found))
    model = request.config.model
    print(json.dumps({"model": model.id, "dtype": model.dtype} | figures(found)))
    if not found.holds:
        raise Disagreement(
            f"{model.id} computes something else in dpn.compress than by itself (see above);"
            " please report it with this output, and do not use dpn.compress for it."
        )


def verify(request: Request) -> "Verification":
    """Compare the model of a config with what `dpn.compress` makes of it.

    Raises:
        ConfigError: If the config is invalid; lists every problem.
        FileError: If the model cannot be loaded.
        SettingError: If the model, the method or the processor is not supported.
    """
    from dpn.config import build, preflight
    from dpn.data.image_files import load_image
    from dpn.data.sources.mosaic import example_image
    from dpn.inference import stock
    from dpn.measure.verification import check_method, verify_model

    early_stop.imported()
    preflight.check_verification(request)
    values: dict[str, Any] = build.plain(request.config)
    model, router, keep = values["model"], values["router"], values["keep"]
    picture = values["image"]
    image = example_image() if picture is None else load_image(picture)
    check_method(stock.stock_config(model["id"]), router, keep)
    processor = stock.load_processor(model["id"])
    loaded = stock.load_stock(**{"name": model["id"], **{k: model[k] for k in ("dtype", "device")}})
    inputs = stock.stock_inputs(processor, image, values["prompt"])
    inputs = inputs.to(loaded.device, loaded.dtype)
    return verify_model(loaded, inputs, router, keep, values["new_tokens"], values["pairs"])


if __name__ == "__main__":
    main()
