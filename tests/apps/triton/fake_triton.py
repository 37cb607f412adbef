"""A stand-in for Triton: the module its Python backend gives a model, and a server with a sequence batcher.

Written from Triton's published sources, and not checked against a running server:

- github.com/triton-inference-server/python_backend, README: `initialize`, `execute`, "Error Handling" (TritonError and
  its codes from 23.09 on), and src/resources/triton_python_backend_utils.py (names, arguments, refusals)
- its README: "tensor data ... are deleted" once execute returns. Here the data is overwritten.
- github.com/triton-inference-server/core, sequence_batch_scheduler.cc: the direct strategy fills empty slots below the
  last slot with a request. They get null copies of a request: READY is false, and nothing else in them has a meaning.
- docs of the sequence batcher: START on a running sequence ends it; a first request without START is refused; the
  model is not notified when a sequence was idle for too long (server issue 3652)
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_STRING": np.object_, "TYPE_INT32": np.int32, "TYPE_INT64": np.int64}
TOKEN = re.compile(r'"[^"]*"|[\w.+-]+|[{}\[\]:,]')


class TritonModelException(Exception):
    pass


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        if not isinstance(message, str):
            raise TypeError("the message of a TritonError is a str")
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        if array.dtype.type in (np.str_, np.void):
            raise TritonModelException("Tensor dtype is not supported. Please use np.object_ instead.")
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceRequest:
    def __init__(self, inputs: list[Tensor], correlation_id: int) -> None:
        self._inputs, self._correlation_id = inputs, correlation_id

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def correlation_id(self) -> int:
        return self._correlation_id


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        if error is None and not isinstance(output_tensors, list):
            raise TritonModelException('"output_tensors" must be a list.')
        self._tensors, self._error = output_tensors or [], error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def backend_utils() -> ModuleType:
    """triton_python_backend_utils, as much of it as this model uses."""
    module = ModuleType("triton_python_backend_utils")
    for each in (TritonModelException, TritonError, Tensor, InferenceRequest, InferenceResponse):
        setattr(module, each.__name__, each)
    module.get_input_tensor_by_name = get_input_tensor_by_name  # type: ignore[attr-defined]
    return module


REPEATED = ("input", "output", "control_input", "control", "instance_group", "parameters", "dims", "gpus")


def parsed(text: str) -> dict[str, Any]:
    """Parse a config.pbtxt into Triton's JSON for `args["model_config"]`, for the syntax our files use."""
    tokens = TOKEN.findall(re.sub(r"#.*", "", text))
    config = _message(iter([*tokens, "}"]))
    config["parameters"] = {each["key"]: each["value"] for each in config.get("parameters", [])}
    return config


def _message(tokens: Iterator[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in tokens:
        if name == "}":
            return found
        if name == ",":
            continue
        token = next(tokens)
        value = _value(next(tokens) if token == ":" else token, tokens)
        if name in REPEATED or name.endswith("_false_true"):
            found.setdefault(name, []).extend(value if isinstance(value, list) else [value])
        else:
            found[name] = value
    raise AssertionError("a brace is not closed")


def _value(token: str, tokens: Iterator[str]) -> Any:
    if token == "{":
        return _message(tokens)
    if token == "[":
        values = []
        for each in tokens:
            if each == "]":
                return values
            if each != ",":
                values.append(_value(each, tokens))
    return json.loads(token) if re.fullmatch(r'"[^"]*"|-?\d+|true|false', token) else token


@dataclass(kw_only=True)
class Ask:
    """A client's request for one sequence. The arrays have no batch axis."""

    of: int
    start: bool = False
    end: bool = False
    inputs: dict[str, np.ndarray] = field(default_factory=dict)


def ask(of: int, *, start: bool = False, end: bool = False, **inputs: Any) -> Ask:
    """Build a request: frame=ARRAY, picture=BYTES, question=TEXT, max_new_tokens=N."""
    arrays = {}
    for name, value in inputs.items():
        if isinstance(value, str | bytes):
            value = np.array([value.encode() if isinstance(value, str) else value], dtype=np.object_)
        arrays[name.upper()] = np.array([value], np.int32) if isinstance(value, int) else value
    return Ask(of=of, start=start, end=end, inputs=arrays)


@dataclass(frozen=True)
class Said:
    """A response: the model's outputs, or its error and error code."""

    answer: str = ""
    frames: int = -1
    error: str = ""
    code: int | None = None


class Server:
    """One instance of a model, and a direct sequence batcher that sends it one request per sequence at a time."""

    def __init__(self, folder: Path, *, strict: bool = True) -> None:
        """strict: refuse a first request without START before the model sees it."""
        self.config = parsed((folder / "config.pbtxt").read_text(encoding="utf-8"))
        assert self.config["name"] == folder.name and self.config["backend"] == "python"
        self._strict, self._slots = strict, [0] * self.config["max_batch_size"]
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.model = module.TritonPythonModel()
        args = {"model_config": json.dumps(self.config), "model_name": folder.name, "model_version": "1"}
        self.model.initialize(args | {"model_repository": str(folder), "model_instance_kind": "CPU"})

    def forget(self, of: int) -> None:
        """Drop an idle sequence, as the server does; the model is not notified."""
        self._slots[self._slots.index(of)] = 0

    def infer(self, *asked: Ask) -> list[Said]:
        """Run one batch with at most one request per sequence. Returns the answers in the order of `asked`."""
        by_slot = {self._slot(each): each for each in asked}
        assert len(by_slot) == len(asked)
        requests = [self._request(by_slot.get(slot), asked[0]) for slot in range(max(by_slot) + 1)]
        responses = self.model.execute(requests)
        assert isinstance(responses, list) and len(responses) == len(requests) and None not in responses
        for request in requests:
            for tensor in request.inputs():
                tensor.as_numpy().fill(0xAA if tensor.as_numpy().dtype != np.object_ else b"gone")
        for slot, each in by_slot.items():
            self._slots[slot] = 0 if each.end else each.of
        said = {id(each): self._said(responses[slot]) for slot, each in by_slot.items()}
        return [said[id(each)] for each in asked]

    def _slot(self, each: Ask) -> int:
        if each.of in self._slots:
            return self._slots.index(each.of)
        assert each.start or not self._strict, "must specify the START flag on the first request of the sequence"
        slot = self._slots.index(0)  # a real server would queue it if all slots are taken
        self._slots[slot] = each.of
        return slot

    def _request(self, each: Ask | None, beside: Ask) -> InferenceRequest:
        """Build the model's request. `each` is None for an empty slot, which gets a null copy."""
        copied = each or beside
        for given in self.config["input"]:
            if given["name"] in copied.inputs:
                array = copied.inputs[given["name"]]
                wanted = (DTYPES[given["data_type"]], len(given["dims"]))
                assert (array.dtype.type, array.ndim) == wanted, f"unexpected shape or type for {given['name']}"
                assert all(want in (-1, got) for want, got in zip(given["dims"], array.shape, strict=True))
        assert set(copied.inputs) <= {given["name"] for given in self.config["input"]}
        tensors = [Tensor(name, np.array(array[np.newaxis])) for name, array in copied.inputs.items()]
        truths: Mapping[str, bool] = {
            "CONTROL_SEQUENCE_START": each is not None and each.start,
            "CONTROL_SEQUENCE_END": each is not None and each.end,
            "CONTROL_SEQUENCE_READY": each is not None,
        }
        for control in self.config["sequence_batching"]["control_input"]:
            (how,) = control["control"]
            if how["kind"] == "CONTROL_SEQUENCE_CORRID":
                array = np.array([[copied.of]], np.uint64)
            else:
                array = np.array([[how["int32_false_true"][truths[how["kind"]]]]], np.int32)
            tensors.append(Tensor(control["name"], array))
        return InferenceRequest(tensors, copied.of)

    def _said(self, response: InferenceResponse) -> Said:
        error = response.error()
        if error is not None:
            return Said(error=error.message(), code=error.code())
        arrays = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        for wanted in self.config["output"]:
            array = arrays[wanted["name"]]
            assert array.dtype == DTYPES[wanted["data_type"]] and array.shape == (1, *wanted["dims"])
        return Said(answer=arrays["ANSWER"].item().decode(), frames=arrays["FRAMES"].item())


@contextmanager
def serving(folder: Path, *, strict: bool = True) -> Iterator[Server]:
    """Start a server for this model, with `apps` and `engines` as this process has imported them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", backend_utils())
        patch.setattr(sys, "path", list(sys.path))
        server = Server(folder, strict=strict)
        try:
            yield server
        finally:
            server.model.finalize()
