"""A model that users define in a Python file of their own, named on the command line as `path/to/file.py:factory`.

`factory` is a function or a class that is called without arguments and gives an `nn.Module`, or a module that the
file has made. The file is run as `python path/to/file.py` would run it: its folder comes first on the import path, so
that it may import its neighbours. It is the user's own code and runs with the user's rights; nothing but a name that
ends in .py is ever run.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fullfield.errors import ConfigError, FullfieldError, nearest

__all__ = ["is_model_file", "load_model_file"]

_FORM = re.compile(r"(?P<file>.*\.py)(?::(?P<factory>[^/\\:]*))?", re.DOTALL)
_NUMBERS = itertools.count()
_NEIGHBOURS: set[str] = set()  # modules that files imported from their own folders


def is_model_file(source: object) -> bool:
    """Whether a model's source has the form of `path/to/file.py:factory`; the factory may be missing."""
    return isinstance(source, str | Path) and _FORM.fullmatch(str(source)) is not None


def load_model_file(source: str | Path) -> nn.Module:
    """Make the model that a Python file defines. This runs the file.

    Args:
        source: "path/to/file.py:factory".

    Returns:
        The model on the device where the file put it, in eval mode, as `fullfield.load` gives it.

    Raises:
        ConfigError: There is no such file or no such name in it, the factory needs arguments or gives no `nn.Module`,
            or the file fails; its line is named.
        FullfieldError: What the file itself caused by a call of Fullfield.
    """
    match = _FORM.fullmatch(str(source))
    if match is None:
        raise ConfigError(f"{str(source)!r} is no model in a file; name it as path/to/file.py:factory")
    file, name = Path(match["file"]), match["factory"] or ""
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise ConfigError(f"there is no file {file}{nearest(file.name, siblings)}")
    with _importing_from(file.parent):
        module = _run(file)
        factory = getattr(module, name, None) if name else None
        if factory is None:
            raise ConfigError(_no_such_name(file, name, module))
        made = factory if isinstance(factory, nn.Module) else _call(file, name, factory)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{file}:{name} gives {type(made).__name__}; it must give a torch.nn.Module")
    return made.eval()


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path while the block runs, and forget the modules of the folder before.

    Copies of an experiment have neighbours of the same name; each file must get its own.
    """
    for name in _NEIGHBOURS:
        sys.modules.pop(name, None)
    _NEIGHBOURS.clear()
    known = set(sys.modules)
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        _NEIGHBOURS.update(name for name in set(sys.modules) - known if _lies_in(entry, name.partition(".")[0]))


def _lies_in(folder: str, package: str) -> bool:
    """Whether a module or package that is loaded is a file or folder of `folder`, and not of an environment below."""
    here = PathFinder.find_spec(package, [folder])
    loaded = getattr(sys.modules.get(package), "__spec__", None)
    return here is not None and loaded is not None and here.origin == loaded.origin


def _run(file: Path) -> ModuleType:
    """Run a file as a module that no other is named like, and keep it: dataclasses and pickle look modules up."""
    name = f"_fullfield_model_{next(_NUMBERS)}_{file.stem}"
    spec = spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} can't be run as Python")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FullfieldError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"{_where(file, error)}: {_what(error)}") from error
    return module


def _call(file: Path, name: str, factory: Any) -> Any:
    if not callable(factory):
        raise ConfigError(f"{file}:{name} is {type(factory).__name__}; it must be a function, a class or a module")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ConfigError(
            f"{file}:{name} needs arguments ({error}); add a function without any, such as"
            f" `def my_{name.lower()}(): return {name}(...)`, and name that"
        ) from error
    except ValueError:  # a built-in that tells no signature
        pass
    try:
        return factory()
    except FullfieldError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{_where(file, error)}, called as {name}(): {_what(error)}") from error


def _where(file: Path, error: BaseException) -> str:
    """Return the file with the line of it that failed last."""
    if isinstance(error, SyntaxError) and error.filename == str(file.resolve()):
        return f"{file}, line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file.resolve())]
    return f"{file}, line {lines[-1]}" if lines else str(file)


def _what(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _no_such_name(file: Path, name: str, module: ModuleType) -> str:
    """Say what the file defines itself that could be meant."""
    own = [key for key, value in vars(module).items() if not key.startswith("_") and _makes_models(value, module)]
    listed = f"; it defines {', '.join(own)}" if own else "; it defines no function, class or module"
    if not name:
        return f"say what makes the model, as in {file}:{own[0] if own else 'factory'}{listed}"
    return f"{file} has no {name!r}{nearest(name, own)}{listed}"


def _makes_models(value: object, module: ModuleType) -> bool:
    if isinstance(value, nn.Module):
        return True
    if getattr(value, "__module__", None) != module.__name__:  # imported
        return False
    return issubclass(value, nn.Module) if isinstance(value, type) else callable(value)
