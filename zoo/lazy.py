"""Package surfaces that load a name's module when the name is asked for: nobody waits for what they do not use.

    if TYPE_CHECKING:
        from zoo.storage.zoo import Zoo
    else:
        __getattr__, __dir__ = lazy_surface(__name__)

    __all__ = ["Zoo"]

Type checkers and readers see plain imports, and what they say is the one list of names.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module


def lazy_surface(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, for the names that its `if TYPE_CHECKING:` imports.

    Args:
        package: full name of the package that is being imported.

    Raises:
        ImportError: from `__getattr__`, if a name needs a library that is missing; the text names the extra to install.

    Source: Scientific Python, SPEC 1, "Lazy loading of submodules and functions".
    """
    module = sys.modules[package]
    block = next(node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.If))
    lines = [line for line in block.body if isinstance(line, ast.ImportFrom)]
    homes = {name.name: str(line.module) for line in lines for name in line.names}

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            root = package.partition(".")[0]
            if error.name is None or error.name.startswith(("zoo", "generator", "learned_opt")):
                raise
            help = f"pip install 'weightfoundry[{root}]'"
            raise ImportError(
                f"{package}.{name} needs {error.name}, which is missing: {help}", name=error.name
            ) from error
        setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *homes})


@contextmanager
def needs(what: str, install: str) -> Iterator[None]:
    """Libraries are imported inside; without one the error says in a line what is missing it.

    Args:
        what: the library is for, such as "images are read by pillow".
        install: what pip takes to bring it.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what}, which is not installed: pip install {install}", name=error.name) from error
