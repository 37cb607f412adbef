"""Oracle: Triton's schema and clients. Runs in its own environment, and prints one JSON object.

python tests/oracles/run_triton.py MODEL_FOLDER [EDIT WITH]

config   config.pbtxt as parsed with model_config.proto; or `refused`, the parser's error (after replacing EDIT by WITH)
clients  the requests that README.md's client sends over http and grpc: for each its inputs and its sequence
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tritonclient.grpc
import tritonclient.http
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig


class Result:
    def as_numpy(self, name: str) -> np.ndarray:
        return np.array([[b"Yes."]], np.object_) if name == "ANSWER" else np.array([[1]], np.int64)


def sent_by(code: str, kind: str) -> list[dict[str, Any]]:
    """Return the code's calls of the client's `infer`. Only the connection is not made."""
    requests = []

    def infer(self: object, model: str, inputs: list[Any], **sequence: Any) -> Result:
        tensors = {each.name(): [each.datatype(), list(each.shape())] for each in inputs}
        requests.append({"model": model, "inputs": tensors} | sequence)
        return Result()

    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[kind]
    with patch.object(module.InferenceServerClient, "infer", infer):
        exec(compile(code.replace("tritonclient.http", f"tritonclient.{kind}"), "README.md", "exec"), {"print": len})
    return requests


def main() -> None:
    folder = Path(sys.argv[1])
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    if edit := sys.argv[2:]:
        assert text.count(edit[0]) == 1
        text = text.replace(*edit)
    try:
        config = text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        print(json.dumps({"refused": str(error)}))
        return
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    clients = {kind: sent_by(code, kind) for kind in ("http", "grpc")}
    print(
        json.dumps({"config": json_format.MessageToDict(config, preserving_proto_field_name=True), "clients": clients})
    )


if __name__ == "__main__":
    main()
