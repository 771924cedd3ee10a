"""Modules that are imported when something of them is asked for, and not before."""

import importlib
from typing import Any


class Lazily:
    """Stands for a module that takes long to import: its first attribute imports it.

    Parameters
    ----------
    name : str
        Of the module, ``package.module``.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
