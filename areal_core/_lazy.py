"""Names that are imported from their modules on first use, so that importing a package costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(
    package: str, names: dict[str, Any], module_of: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for *package*, whose globals are *names*.

    *module_of* says for each name which module of the package has it; "" is that a name is a module itself.
    """

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not module_of[name]:
            return import_module(f"{package}.{name}")
        value = names[name] = getattr(import_module(f"{package}.{module_of[name]}"), name)
        return value

    def list_names() -> list[str]:
        return sorted(names | dict.fromkeys(names["__all__"]))

    return get, list_names
