"""The training loop: workers that share gradients, a log, and a state file from which a killed run resumes.

The default is two processes with one thread each. On a CPU they are faster than one process with two threads, because
these matrices are too small to split. Each worker makes its batches; workers exchange only the sum of the gradients.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.utils.data import DataLoader, Dataset

from ..bundled import SHAPES_FOLDER
from ..checkpoint.folder import load, save
from ..config import CompressorKind, PVCConfig
from ..errors import InputError
from ..model import PVC
from .base import take_over
from .batches import Batch, BatchMaker, Stage
from .objective import LabelHeads, Outcome, compute, context_token_id
from .optimizer import MAX_GRADIENT_NORM, Average, Optimizer, initialize
from .threads import fast_products
from .tokenizer import shapes_tokenizer

WORLD = "shapes"
CAPTION_SHARE = 0.12  # of all steps: the paper's first stage, scaled down
SAVE_EVERY, LOG_EVERY = 250, 50
STATE_FILE, LOG_FILE, MODEL_FOLDER = "training.pt", "log.jsonl", "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything a result depends on. A run can be resumed only with the same recipe.

    num_workers   processes, each with a share of a step's clips
    scale         factor on the number of clips of each worker
    compressor    kind of compressor
    temporal      False trains without temporal attention
    num_tokens    tokens per frame; None means the preset's
    token_labels  whether frame tokens are also trained to predict their patches' labels
    from_bundled  start from the ViT and LLM of the bundled model (base.py) instead of random weights
    """

    num_steps: int = 10_000
    seed: int = 0
    num_workers: int = 2
    scale: int = 1
    compressor: CompressorKind = "pvc"
    temporal: bool = True
    num_tokens: int | None = None
    token_labels: bool = True
    from_bundled: bool = False

    def config(self) -> PVCConfig:
        preset = PVCConfig.preset("shapes")
        compressor = replace(
            preset.compressor, kind=self.compressor, num_tokens=self.num_tokens or preset.compressor.num_tokens
        )
        layers = preset.vision.num_temporal_layers if self.temporal else 0
        return replace(preset, vision=replace(preset.vision, num_temporal_layers=layers), compressor=compressor)

    def stage(self, step: int) -> Stage:
        return "captions" if step < CAPTION_SHARE * self.num_steps else "instructions"


class _Steps(Dataset[tuple[Batch, Batch]]):
    """Maps a step to its video batch and its image batch."""

    def __init__(self, recipe: Recipe, maker: BatchMaker, rank: int) -> None:
        self.recipe, self.maker, self.rank = recipe, maker, rank

    def __len__(self) -> int:
        return self.recipe.num_steps

    def __getitem__(self, step: int) -> tuple[Batch, Batch]:
        stage = self.recipe.stage(step)
        return self.maker.video(step, self.rank, stage), self.maker.images(step, self.rank, stage)


def train(recipe: Recipe, out: Path, *, device: str = "cpu", num_loaders: int = 0, quiet: bool = False) -> Path:
    """Train, or resume a killed run of the same recipe. Returns the checkpoint folder.

    num_loaders  processes per worker that prepare batches; 0 prepares them in the worker
    quiet        print nothing
    Raises InputError if `out` holds a run of another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (out / MODEL_FOLDER).exists():
        return out / MODEL_FOLDER
    if recipe.num_workers == 1:
        _work(0, recipe, out, device, num_loaders, quiet, None)
    else:
        meeting = out.resolve() / f".meeting-{os.getpid()}"  # absolute: a URL starts with a host
        try:
            multiprocessing.spawn(  # type: ignore[attr-defined,no-untyped-call]
                _work, (recipe, out, device, num_loaders, quiet, meeting), nprocs=recipe.num_workers
            )
        finally:
            meeting.unlink(missing_ok=True)
    return out / MODEL_FOLDER


def _work(
    rank: int, recipe: Recipe, out: Path, device_name: str, num_loaders: int, quiet: bool, meeting: Path | None
) -> None:
    device = torch.device(device_name)
    if meeting is not None:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=recipe.num_workers)
    try:
        with fast_products() if device.type == "cpu" else nullcontext():
            _Worker(rank, recipe, out, device).run(num_loaders, quiet)
    finally:
        if meeting is not None:
            dist.destroy_process_group()


class _Worker:
    def __init__(self, rank: int, recipe: Recipe, out: Path, device: torch.device) -> None:
        self.rank, self.recipe, self.out, self.device = rank, recipe, out, device
        self.config = recipe.config()
        self.tokenizer = shapes_tokenizer(self.config.llm.vocab_size)
        self.context_id = context_token_id(self.tokenizer)
        self.model = PVC(self.config)
        if self.config.llm.tie_embeddings:
            self.model.llm.lm_head.weight = self.model.llm.embed_tokens.weight
        self.heads = LabelHeads(self.config)
        initialize(self.model, seed=recipe.seed)
        initialize(self.heads, seed=recipe.seed)
        if recipe.from_bundled:
            take_over(self.model, load(SHAPES_FOLDER))
        self.model.to(device)
        self.heads.to(device)
        self.optimizer = Optimizer.of(self.model, self.heads)
        self.average = Average(self.model)
        self.step, self.seconds = 0, 0.0

    def run(self, num_loaders: int, quiet: bool) -> None:
        self._resume()
        recipe = self.recipe
        maker = BatchMaker(self.config, self.tokenizer, seed=recipe.seed, scale=recipe.scale)
        steps = _Steps(recipe, maker, self.rank)
        log = _Log(self.out / LOG_FILE, recipe, self.rank, quiet)
        started = time.monotonic() - self.seconds
        left = range(self.step, recipe.num_steps)
        for batches in DataLoader(steps, batch_size=None, sampler=left, num_workers=num_loaders):
            outcomes = self._learn(batches)
            self.step += 1
            self.seconds = time.monotonic() - started
            log.add(self.step, self.seconds, outcomes)
            if self.step % SAVE_EVERY == 0 and self.rank == 0:
                self._save()
        if self.rank == 0:
            self.average.copy_to(self.model)
            self.model.trained_on = WORLD
            save(self.model, self.out / MODEL_FOLDER, dtype=torch.float16, tokenizer=self.tokenizer)
            (self.out / STATE_FILE).unlink(missing_ok=True)

    def _learn(self, batches: tuple[Batch, Batch]) -> list[Outcome]:
        self.optimizer.zero_grad()
        outcomes = []
        for batch in batches:
            outcome = compute(
                self.model, self.heads, batch.to(self.device), self.context_id,
                use_token_labels=self.recipe.token_labels,
            )  # fmt: skip
            (outcome.loss / len(batches)).backward()
            outcomes.append(outcome)
        self._share_gradients()
        self.optimizer.step(self.step, self.recipe.num_steps)
        self.average.update(self.model)
        return outcomes

    def _share_gradients(self) -> None:
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:  # not used in this step by any worker
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if dist.is_initialized():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM, error_if_nonfinite=True)

    # -- what survives a kill --------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        muon, adam = self.optimizer.muon, self.optimizer.adam
        return {"model": self.model, "heads": self.heads, "muon": muon, "adam": adam}

    def _save(self) -> None:
        state: dict[str, Any] = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            **{name: part.state_dict() for name, part in self._parts().items()},
            "average": self.average.weights,
            "num_updates": self.average.num_updates,
        }
        partial = self.out / f".{STATE_FILE}.partial"
        torch.save(state, partial)
        partial.replace(self.out / STATE_FILE)

    def _resume(self) -> None:
        path = self.out / STATE_FILE
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise InputError(
                f"{path} belongs to a run with another recipe: {state['recipe']}",
                expected=f"this run's recipe: {asdict(self.recipe)}",
                fix="choose another --out, or remove that folder",
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.average.weights = {name: state["average"][name] for name in self.average.weights}
        self.average.num_updates = state["num_updates"]
        self.step, self.seconds = state["step"], state["seconds"]


class _Log:
    """Log of every LOG_EVERY steps: a JSON line in the file and a readable line on stdout. Only rank 0 writes."""

    def __init__(self, path: Path, recipe: Recipe, rank: int, quiet: bool) -> None:
        self.path, self.recipe, self.is_silent, self.quiet = path, recipe, rank != 0, quiet
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()

    def add(self, step: int, seconds: float, outcomes: list[Outcome]) -> None:
        if self.is_silent:
            return
        for kind, outcome in zip(("video", "image"), outcomes, strict=True):
            for topic, count in outcome.asked.items():
                self.asked[f"{kind} {topic}"] += count
                self.right[f"{kind} {topic}"] += outcome.right[topic]
            for name in ("answer_loss", "patch_loss", "token_loss", "token_std"):
                self.sums[f"{kind} {name}"] += getattr(outcome, name) / LOG_EVERY
        if step % LOG_EVERY and step != self.recipe.num_steps:
            return
        accuracy = {topic: round(100 * self.right[topic] / count, 1) for topic, count in sorted(self.asked.items())}
        means = {name: round(value, 4) for name, value in self.sums.items()}
        entry = {"step": step, "seconds": round(seconds, 1), **means, "accuracy": accuracy}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if not self.quiet:
            self._print(step, seconds, means, accuracy)
        for counter in (self.right, self.asked, self.sums):
            counter.clear()

    def _print(self, step: int, seconds: float, means: Mapping[str, float], accuracy: Mapping[str, float]) -> None:
        left = seconds / step * (self.recipe.num_steps - step)
        print(
            f"step {step:5}/{self.recipe.num_steps}  {seconds / 60:5.1f} min, {left / 60:.0f} left  "
            + "  ".join(f"{name} {value:.3f}" for name, value in means.items() if "answer" in name or "std" in name)
            + "  "
            + ", ".join(f"{topic} {value:.0f}" for topic, value in accuracy.items()),
            flush=True,
        )
