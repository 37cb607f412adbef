"""Bytes of an engine: its weights, and the code of its kernels.

TensorRT-RTX stores kernels as code that the GPU's driver compiles further, some hundred kilobytes per kind; layers of
one kind share little of it. Fitted to builds by TensorRT-RTX 1.7.1.116 for its four kinds of GPU. The choice of kernels
also depends on sizes: one engine's estimate may be off by 5 %, a bundle's total by less than 2 %. TensorRT's builder on
a device has not been tried: its engines are assumed to have the same size.
"""

from __future__ import annotations

from engines.spec import GraphSpec
from pvc_ref import PVC

from .graph_files import Nodes, is_narrow, layers_of, weight_bytes

# Keys: graph or kind of compressor; whether it is narrower than float32, in which case more is fused.
CODE: dict[tuple[str, bool], Nodes] = {
    ("trunk", False): Nodes(1318400, 319220),
    ("trunk", True): Nodes(871200, 165120),
    ("temporal", False): Nodes(3092700, 330510),
    ("temporal", True): Nodes(2709800, 463800),
    ("pvc", False): Nodes(590000),
    ("pvc", True): Nodes(590000),
    ("pixel_shuffle", False): Nodes(158300),
    ("pixel_shuffle", True): Nodes(158300),
    ("pool", False): Nodes(158300),
    ("pool", True): Nodes(158100),
    ("conv", False): Nodes(287700),
    ("conv", True): Nodes(288400),
    ("q_former", False): Nodes(900000, 870000),
    ("q_former", True): Nodes(900000, 594000),
    ("llm", False): Nodes(2011000, 931150),
    ("llm", True): Nodes(2959200, 353930),
    ("head", False): Nodes(6500),
    ("head", True): Nodes(8200),
}
CODED: dict[tuple[str, bool], Nodes] = {
    ("trunk", False): Nodes(1452000, 589400),
    ("trunk", True): Nodes(974000, 600000),
    ("temporal", False): Nodes(1840700, 1314700),
    ("temporal", True): Nodes(1443000, 1268500),
    ("compressor", False): Nodes(838900),
    ("compressor", True): Nodes(842200),
    ("llm", False): Nodes(1457000, 1185000),
    ("llm", True): Nodes(1489000, 1268000),
}
"""The same with quantised weights: each such matmul has its own kernel. The only compressor that was built is `pvc`."""
SMALL_HEAD, SMALL_HEAD_CODE = 256, {False: 137700, True: 268200}
"""The head of an LLM narrower than SMALL_HEAD is computed in parts."""
UNGROUPED = {False: 816500, True: 548900}
"""An LLM layer whose heads each have their own key and value, so that in decode every query has a single row."""
ONE_TEMPORAL_LAYER = -571000
"""A single layer is both first and last, so there are fewer kinds of layers."""
NO_TEMPORAL_LAYERS = 134800
TABLE_SAVES = {"temporal": Nodes(0, 139000), "compressor": Nodes(144000)}
BATCH_ADDS = {
    "trunk": Nodes(606000, 9500), "temporal": Nodes(16000, 202700), "compressor": Nodes(178000),
    "llm": Nodes(173400, 7070), "head": Nodes(5900),
}  # fmt: skip
"""Added for a batch of several streams."""


def engine_bytes(model: PVC, spec: GraphSpec, *, streams: int) -> int:
    """Size of a graph's engine in bytes. `model` is cast, and may be on `meta`."""
    return weight_bytes(model, spec) + code_bytes(model, spec, streams=streams)


def code_bytes(model: PVC, spec: GraphSpec, *, streams: int) -> int:
    config, narrow, coded = model.config, is_narrow(spec), spec.quantization is not None
    num_layers = layers_of(config, spec.name)
    if spec.name == "temporal" and not num_layers:
        return NO_TEMPORAL_LAYERS
    kind = config.compressor.kind if spec.name == "compressor" else spec.name
    coded = coded and (spec.name, narrow) in CODED  # no engine has a quantised head
    code = CODED[spec.name, narrow] if coded else CODE[kind, narrow]
    num_bytes, layer = code.graph, code.layer
    if spec.name == "llm" and config.llm.num_heads == config.llm.num_kv_heads and not coded:
        layer = UNGROUPED[narrow]
    elif spec.name == "temporal" and num_layers == 1 and not coded:
        num_bytes += ONE_TEMPORAL_LAYER
    elif spec.name == "head" and config.llm.hidden_size < SMALL_HEAD and streams == 1:
        num_bytes = SMALL_HEAD_CODE[narrow]
    if spec.num_times is not None:
        num_bytes -= TABLE_SAVES[spec.name].graph
        layer -= TABLE_SAVES[spec.name].layer
    if streams > 1:
        num_bytes += BATCH_ADDS[spec.name].graph
        layer += BATCH_ADDS[spec.name].layer
    return num_bytes + num_layers * layer
