"""The PyTorch reference of a graph of any origin: imported, called with the graph's inputs, outputs by name.

Note: this imports and runs the module that the user names, and nothing else: it searches for no checkpoint and loads no
pickle. A reference that needs weights loads them itself.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engines.errors import ModelError
from engines.memory import Array
from engines.terminal import did_you_mean

from .session import one_line
from .states import Declared, Port, kind_of

LARGEST_FP64 = 500_000_000
"""Parameters above which the float64 weights alone would need more than 4 GB, on top of the reference's own."""
BY_NAME = "return tensors in the order of the graph's outputs, or a dict by output name"
WRAP = "wrap the model in one that takes the graph's inputs"
FORM = "pkg.module:Name or path/to/file.py:Name"


def load_reference(text: str) -> nn.Module:
    """A copy of the module that 'pkg.module:Name' or 'path/to/file.py:Name' names, in float32 and eval mode.

    Name is a torch.nn.Module, or a class or function that makes one without arguments. Imports are looked up in the
    installed packages first, then in the current folder or the file's. Raises ModelError if there is no such module.
    """
    source, _, name = text.rpartition(":")
    if not source or not name.isidentifier():
        raise _refused(text, " names no model", fix="name the module, and the model in it")
    is_file = source.endswith(".py")
    if not is_file and (Path(source).is_file() or not all(part.isidentifier() for part in source.split("."))):
        cause = "it is a checkpoint or a pickle, which are never loaded here"
        fix = "name the code that makes the model and loads its weights"
        raise _refused(text, f": '{source}' is neither a module nor a .py file", cause=cause, fix=fix)
    if is_file and not Path(source).is_file():
        raise _refused(text, f": {source} does not exist", fix="correct the path and run the check again")
    folder = str(Path(source).resolve().parent if is_file else Path.cwd())
    sys.path.append(folder)  # at the end, so that its modules cannot shadow installed ones
    try:
        imported = _import(source, text, is_file=is_file)
        if not hasattr(imported, name):
            known = [key for key in vars(imported) if not key.startswith("_")]
            expected = "a torch.nn.Module there, or a function that makes one"
            fix = f"{did_you_mean(name, known)} Correct the name and run the check again".strip()
            raise _refused(text, f": {source} has no '{name}'", expected=expected, fix=fix)
        return _make(getattr(imported, name), text).float().eval()
    finally:
        sys.path.remove(folder)


def _refused(text: str, what: str, *, expected: str = FORM, cause: str = "", fix: str) -> ModelError:
    return ModelError(f"--reference {text}{what}", expected=expected, cause=cause, fix=fix)


def _import(source: str, text: str, *, is_file: bool) -> ModuleType:
    try:
        if not is_file:
            return importlib.import_module(source)
        spec = importlib.util.spec_from_file_location(f"reference_{Path(source).stem}", source)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:  # the user's code can raise anything on import
        what, alone = f": importing {source} failed: {_told(error)}", source if is_file else f"-c 'import {source}'"
        expected = "a module that can be imported without side effects"
        cause = "a package is missing here, or the module is a script without a main guard"
        raise _refused(text, what, expected=expected, cause=cause, fix=f"import it alone: python {alone}") from error


def _make(found: Any, text: str) -> nn.Module:
    try:
        made = found() if callable(found) and not isinstance(found, nn.Module) else copy.deepcopy(found)
    except Exception as error:  # the user's constructor can raise anything
        fix = "if it needs arguments, add a function that passes them and loads the weights, and name that function"
        raise _refused(text, f" cannot be made without arguments: {_told(error)}", expected="", fix=fix) from error
    if not isinstance(made, nn.Module):
        what = f" {'makes' if callable(found) else 'is'} an object of type {type(made).__name__}"
        expected = "a torch.nn.Module, or a class or function that makes one without arguments"
        raise _refused(text, what, expected=expected, fix="name the model, or let it return the model")
    return made


def _told(error: BaseException) -> str:
    """The error, with the line of the user's code that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(error)} ({Path(frame.filename).name}:{frame.lineno})"


class Reference:
    """A module as one side of the comparison: numpy in and out, by the graph's names, in one dtype.

    Arguments are the graph's inputs by name; characters that a Python name cannot have become '_'.
    Raises ModelError if the module's forward cannot be called this way.
    """

    def __init__(self, module: nn.Module, declared: Declared, dtype: torch.dtype = torch.float32) -> None:
        self._module, self._declared, self._dtype = module, declared, dtype
        self._arguments = _arguments(module, declared)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All inputs by name -> all outputs by name, floats in this side's dtype. Inputs are copied.

        Raises ModelError if the forward raises, or its outputs are not the graph's.
        """
        given = {self._arguments[name]: self._tensor(array) for name, array in feeds.items()}
        try:
            with torch.no_grad():
                returned = self._module(**given)
        except Exception as error:  # the user's forward can raise anything
            fed = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in feeds.items())
            raise ModelError(
                f"the reference fails on {fed}: {_told(error)}",
                expected="a forward that accepts the graph's inputs",
                cause="the inputs are random and their sizes arbitrary, unless options restrict them",
                fix="give --bound NAME=LOW:HIGH for token ids, --size AXIS=N for an axis that must have one size, or "
                "--state INPUT=OUTPUT@start:N for a state that cannot begin empty",
            ) from error
        values = zip(self._declared.outputs, self._in_order(returned), strict=True)
        return {port.name: self._array(port, value) for port, value in values}

    def _tensor(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(array.copy())
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _array(self, port: Port, value: Any) -> Array:
        if not isinstance(value, Tensor):
            raise _returned(f"an object of type {type(value).__name__} for output '{port.name}'", "a torch tensor")
        array: Array = (value.to(self._dtype) if value.is_floating_point() else value).detach().cpu().numpy()
        if kind_of(array.dtype) != port.kind:
            what = f"{str(value.dtype).removeprefix('torch.')} for {port.text()}"
            raise _returned(what, port.kind, cause="its outputs are not in the graph's order")
        return array

    def _in_order(self, returned: Any) -> list[Any]:
        """The returned values, in the order of the graph's outputs."""
        names = [port.name for port in self._declared.outputs]
        if isinstance(returned, Mapping):
            _require_names(list(returned), names)
            return [returned[name] for name in names]
        found = list(_flatten(returned))
        if len(found) != len(names):
            expected = f"one for each of the graph's {len(names)} outputs: {', '.join(names)}"
            raise _returned(f"{len(found)} tensors", expected)
        return found


def _returned(what: str, expected: str, *, cause: str = "", fix: str = BY_NAME) -> ModelError:
    return ModelError(f"the reference returns {what}", expected=expected, cause=cause, fix=fix)


class NoiseFloor:
    """The reference in float64, if it runs there. `missing` is the reason why not; None while it runs."""

    def __init__(self, module: nn.Module, declared: Declared) -> None:
        self.missing: str | None = None
        count = sum(parameter.numel() for parameter in module.parameters())
        if count > LARGEST_FP64:
            self.missing = f"the reference has more than {LARGEST_FP64 // 10**6} M parameters"
        else:
            self._side = Reference(copy.deepcopy(module).double(), declared, torch.float64)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
        """Same as Reference.run; None from the first call at which float64 fails."""
        if self.missing is None:
            try:
                return self._side.run(feeds)
            except ModelError as error:
                self.missing = f"the reference does not run in float64: {one_line(error.__cause__ or error.what)}"
        return None


def require_function(reference: Reference, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs. Raises ModelError unless a second call gives the same bits."""
    first, second = reference.run(feeds), reference.run(feeds)
    for name, value in first.items():
        if not np.array_equal(value, second[name], equal_nan=value.dtype.kind == "f"):
            cause = "it draws random numbers, or keeps a cache in the module"
            fix = "take every state as an argument, and return it"
            raise _returned(
                f"a different '{name}' for the same inputs", "a function of its inputs", cause=cause, fix=fix
            )
    return first


def _arguments(module: nn.Module, declared: Declared) -> dict[str, str]:
    """Input of the graph -> argument of the forward."""
    signature = inspect.signature(module.forward)
    named = {n: p for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    inputs = [port.name for port in declared.inputs]
    arguments: dict[str, str] = {}
    for name in inputs:
        spelled = re.sub(r"\W|^(?=\d)", "_", name)
        argument = name if name in named or spelled not in named else spelled
        if argument not in named and not takes_any or argument in arguments.values():
            free = [key for key in named if key not in inputs]
            raise ModelError(
                f"the reference's forward{signature} takes no argument '{spelled}' for the graph's input '{name}'",
                expected=f"an argument for each of {', '.join(inputs)}",
                fix=f"{did_you_mean(spelled, free)} Rename it there, or {WRAP}".strip(),
            )
        arguments[name] = argument
    required = [key for key, p in named.items() if p.default is p.empty and key not in arguments.values()]
    if required:
        raise ModelError(
            f"the reference's forward{signature} requires '{required[0]}', which is not an input of the graph",
            expected=f"no more than the graph's inputs: {', '.join(inputs)}",
            fix=f"give it a default, or {WRAP}",
        )
    return arguments


def _require_names(found: list[str], expected: list[str]) -> None:
    for name in expected:
        if name not in found:
            every = f"every output by its ONNX name; the dict has {', '.join(map(str, found))}"
            fix = f"{did_you_mean(name, found)} Rename it there".strip()
            raise _returned(f"a dict without '{name}', an output of the graph", every, fix=fix)
    if extra := [str(name) for name in found if name not in expected]:
        fix = "export it too, or leave it out of the dict"
        alone = f"the graph's outputs only: {', '.join(expected)}"
        what = f"'{extra[0]}', which is not an output of the graph"
        raise _returned(what, alone, cause="the export lost it", fix=fix)


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _flatten(item)
    else:
        yield value
