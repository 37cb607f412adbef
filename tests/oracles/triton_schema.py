"""The output of `pvc-export triton` in the environment that `make triton` makes, with Triton's schema and clients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pvc_export.bundles.triton import TritonRequest, config_text

from ..apps.triton.fake_triton import parsed

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build/oracles/triton/bin/python"
INPUTS = {"FRAME": ["UINT8", 4], "PICTURE": ["BYTES", 2], "QUESTION": ["BYTES", 2], "MAX_NEW_TOKENS": ["INT32", 2]}


@pytest.fixture(scope="module")
def model(bundle_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton")
    (out / "frame.jpg").write_bytes(b"a picture")
    command = [sys.executable, "-m", "pvc_export.cli", "triton", bundle_fp32, "-o", out / "models", "--name", "watch"]
    subprocess.run([*command, "--slots", "5", "--idle", "12.5"], cwd=ROOT, check=True, capture_output=True)
    return out / "models/watch"


def told(model: Path, *edit: str) -> dict[str, Any]:
    command = [PYTHON, ROOT / "tests/oracles/run_triton.py", model, *edit]
    done = subprocess.run(command, cwd=model.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def test_the_configuration_is_one_of_the_published_schema(model: Path) -> None:
    config = told(model)["config"]
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("watch", "python", 5)
    assert {each["name"]: (each["data_type"], each["dims"], each["optional"]) for each in config["input"]} == {
        "FRAME": ("TYPE_UINT8", ["-1", "-1", "3"], True),
        "PICTURE": ("TYPE_STRING", ["1"], True),
        "QUESTION": ("TYPE_STRING", ["1"], True),
        "MAX_NEW_TOKENS": ("TYPE_INT32", ["1"], True),
    }
    batching = config["sequence_batching"]
    assert batching["direct"] == {} and batching["max_sequence_idle_microseconds"] == "12500000"
    # The first kind and the first data type are zero, and JSON leaves zeros out.
    kinds = {
        each["name"]: each["control"][0].get("kind", "CONTROL_SEQUENCE_START") for each in batching["control_input"]
    }
    assert kinds == {name: f"CONTROL_SEQUENCE_{name}" for name in ("START", "READY", "END", "CORRID")}
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]


def test_the_stand_in_of_the_main_suite_reads_it_as_the_schema_does(model: Path) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if each != "CONTROL_SEQUENCE_START"}
        if isinstance(value, list):
            return [plain(each) for each in value]
        return str(value)

    assert plain(parsed((model / "config.pbtxt").read_text())) == plain(told(model)["config"])


def test_that_for_a_gpu_is_one_too(model: Path, tmp_path: Path) -> None:
    (tmp_path / "frame.jpg").write_bytes(b"a picture")
    folder = tmp_path / "models/watch"
    folder.mkdir(parents=True)
    request = TritonRequest(bundle=model / "bundle", repository=tmp_path / "models", name="watch", trust_engines=True)
    (folder / "config.pbtxt").write_text(config_text(request, on_gpu=True))
    (folder / "README.md").write_text((model / "README.md").read_text())
    config = told(folder)["config"]
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "gpus": [0]}]
    assert config["parameters"]["trust_engines"]["string_value"] == "true"


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_the_client_of_the_page_sends_what_the_configuration_takes(model: Path, kind: str) -> None:
    requests = told(model)["clients"][kind]
    assert [(each["sequence_start"], each["sequence_end"]) for each in requests] == [
        (True, False), (False, False), (False, False), (False, True),
    ]  # fmt: skip
    assert {each["model"] for each in requests} == {"watch"} and {each["sequence_id"] for each in requests} == {7}
    sent = {name: [dtype, len(shape)] for each in requests for name, (dtype, shape) in each["inputs"].items()}
    assert sent == INPUTS and all(shape[0] == 1 for each in requests for _, shape in each["inputs"].values())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("direct { }", "direct { max_candidate_sequences: 5 }"),
        ("max_sequence_idle_microseconds", "max_sequence_idle_us"),
        ("TYPE_UINT8", "TYPE_BYTE"),
        ("KIND_CPU", "KIND_NPU"),
        ("instance_group [", "instance_group [ {"),
    ],
)
def test_what_the_schema_does_not_have_is_found(model: Path, text: str, wrong: str) -> None:
    assert told(model, text, wrong)["refused"]
