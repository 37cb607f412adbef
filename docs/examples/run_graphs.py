"""Frames through a bundle's vision graphs with numpy and ONNX Runtime alone: what a port to another language must do.

    python run_graphs.py BUNDLE FRAMES.npy OUT.npy

FRAMES  uint8 (T, S, S, 3), RGB, S the manifest's image_size.  OUT  frame_embeds (T, M, E), what the LLM is fed

A graph returns only what is new, so the caches are the caller's: manifest.json says which outputs are rows of which
inputs (`states`), and at which axis they go in. Frame t goes to slot t % W, which is masked while frame t runs.
The LLM goes the same way: its states are `linear`, row p at index p, and it either returns new rows (`rows`) or the
whole cache with the new rows in it (`aliased`). Here the clock runs on, and there is no bfloat16.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


class Graph:
    """One ONNX file and its rings, by its entry in the manifest."""

    def __init__(self, bundle: Path, spec: dict[str, Any]) -> None:
        self.session = ort.InferenceSession(bundle / "graphs" / f"{spec['name']}.onnx")
        self.names, self.states = [tensor["name"] for tensor in spec["outputs"]], spec["states"]
        shapes = {t["name"]: [1 if dim == "batch" else dim for dim in t["shape"]] for t in spec["inputs"]}
        self.rings = {s["input"]: np.full(shapes[s["input"]], s["reset"], s["dtype"]) for s in self.states}

    def run(self, slot: int = 0, **inputs: np.ndarray) -> np.ndarray:
        """The first output. The others are new rows of the rings, and go to `slot`."""
        outputs = dict(zip(self.names, self.session.run(self.names, inputs | self.rings), strict=True))
        for state in self.states:
            before = (slice(None),) * state["slot_axis"]
            self.rings[state["input"]][(*before, slot)] = outputs[state["output"]]
        return outputs[self.names[0]]


def main(bundle: Path, frames_path: str, out_path: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    trunk, temporal, compressor = (
        Graph(bundle, manifest["graphs"][name]) for name in ("trunk", "temporal", "compressor")
    )
    frames, window = np.load(frames_path), manifest["limits"]["window"]
    duration = len(frames) if manifest["time_mode"] == "fixed" else 1
    slots, embeds = np.arange(window), []
    for t, frame in enumerate(frames):
        time, slot = np.asarray([t / duration], np.float32), t % window
        mask = (slots < t) & (slots != slot)
        features = trunk.run(frame=frame[None])
        features = temporal.run(slot, trunk_features=features, frame_time=time, slot_mask=mask[None])
        embeds.append(compressor.run(features=features, frame_time=time))
    np.save(out_path, np.concatenate(embeds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
