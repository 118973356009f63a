"""Imports a module when it is first used: a command loads what it needs, and not what the other commands need.

All of convo takes half a second of CPU to import. ``convo help`` needs a tenth of it.
"""

from __future__ import annotations

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType


def import_later(name: str) -> ModuleType:
    """Return the module of this name, of ``convo``; it is run when an attribute of it is first read.

    The first use must be on the main thread, before others run: Python's loader has no lock of its own for it.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    spec.loader = LazyLoader(spec.loader)
    module = module_from_spec(spec)
    sys.modules[name] = module
    # As the import statement does: `import convo.service` makes `convo.service` an attribute of `convo`.
    package, _, last = name.rpartition(".")
    setattr(sys.modules[package], last, module)
    spec.loader.exec_module(module)
    return module
