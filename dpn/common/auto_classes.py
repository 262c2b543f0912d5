"""Register our classes with Hugging Face's Auto classes on `import dpn`, which stays light.

Their registries map a model type to the name of a class, which is looked up in the module
`transformers.models.<model type>` when it is needed. Our names are entered when a registry is
imported: `import dpn` then does not import transformers and torch (2 s), nor our classes while
theirs are half imported. The module that is looked into is `dpn`.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODEL_TYPE = "dpn_llava"
#: For each module, the registry in it and the name of our class.
_REGISTRIES = {
    "transformers.models.auto.configuration_auto": ("CONFIG_MAPPING", "DPNConfig"),
    "transformers.models.auto.modeling_auto": (
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
        "DPNForConditionalGeneration",
    ),
    "transformers.models.auto.processing_auto": ("PROCESSOR_MAPPING", "DPNProcessor"),
}


def announce() -> None:
    """Enter our classes into the registries, or have it done when these are imported."""
    sys.modules[f"transformers.models.{MODEL_TYPE}"] = sys.modules["dpn"]
    sys.meta_path.insert(0, _WhenImported())
    for name in _REGISTRIES.keys() & sys.modules.keys():
        _enter(sys.modules[name])


def _enter(module: ModuleType) -> None:
    """Enter our class into the tables of a registry's module."""
    registry, name = _REGISTRIES[module.__name__]
    getattr(module, f"{registry}_NAMES")[MODEL_TYPE] = name
    # The registry made this from the table of configurations, perhaps before ours was entered.
    by_config = getattr(getattr(module, registry), "_reverse_config_mapping", {})
    by_config["DPNConfig"] = MODEL_TYPE


class _WhenImported(MetaPathFinder):
    """Finds the modules of the registries and enters our classes after they are imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in _REGISTRIES else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_enter(module: ModuleType) -> None:
            run(module)
            _enter(module)

        spec.loader.exec_module = run_and_enter  # type: ignore[method-assign]
        return spec
