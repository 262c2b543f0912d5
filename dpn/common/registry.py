"""Classes chosen by name: a name is a file of a package, or an entry point of a third party."""

import inspect
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Any

from dpn.common.errors import SettingError
from dpn.common.schema import check_arguments


class Registry:
    """All classes of one kind, e.g. all routers.

    Args:
        package: Import path of the package; `base.py` and files that start with an underscore do
            not count.
        base: Base class; each file defines exactly one public subclass of it.
        group: Entry point group of third parties; default: the package.
    """

    def __init__(self, package: str, base: type[Any], group: str | None = None):
        self.package, self.base, self.group = package, base, group or package

    @property
    def kind(self) -> str:
        """Singular of the package's name, for messages: `routers` gives `router`."""
        return self.package.rpartition(".")[2].removesuffix("s")

    def names(self) -> list[str]:
        """All names that `resolve` knows, sorted."""
        files = {m.name for m in iter_modules(import_module(self.package).__path__)}
        own = {name for name in files if name != "base" and not name.startswith("_")}
        return sorted(own | set(self._third_parties))

    @cached_property
    def _third_parties(self) -> dict[str, EntryPoint]:
        # Cached: scanning all installed packages takes milliseconds.
        return {point.name: point for point in entry_points(group=self.group)}

    def resolve(self, name: str) -> type[Any]:
        """Return the class of a name.

        Raises:
            SettingError: If the name is unknown.
        """
        if name not in self.names():
            raise SettingError(
                f"There is no {self.kind} named {name!r}; there is {', '.join(self.names())}."
            )
        if name in self._third_parties:
            return self._third_parties[name].load()
        module = import_module(f"{self.package}.{name}")
        found = [
            item
            for item in vars(module).values()
            if inspect.isclass(item)
            and issubclass(item, self.base)
            and item.__module__ == module.__name__
            and not item.__name__.startswith("_")
        ]
        if len(found) != 1:
            raise ValueError(
                f"{module.__name__} must define exactly one public {self.base.__name__}, it"
                f" defines {len(found)}."
            )
        return found[0]

    def build(self, name: str, **arguments: Any) -> Any:
        """Return an instance of the class of a name.

        Raises:
            SettingError: If the name is unknown, or an argument is unknown, missing, of another
                type than its annotation or out of range; names all of them.
        """
        part = self.resolve(name)
        if problems := check_arguments(self.kind, part, arguments):
            raise SettingError(" ".join(problems))
        return part(**arguments)
