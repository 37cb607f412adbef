"""`make oracles`: compare our LLM graph with two other exports of a random Qwen2, and with a real SmolLM2.

python -m tests.oracles.compare   exit 0 agree, 3 differ, 4 an environment is missing, 5 an oracle failed

Both comparisons always run, even if the first one fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from engines.bundle import open_bundle
from engines.errors import BackendUnavailable, BuildError, ParityError, PVCError
from pvc_export.graphs.models import load_model

from . import compare_steps, smollm2
from .case import our_answers, write_case
from .exchange import CONVERSATIONS, MODEL, Answer, Answers, load_prompts

LIMIT = 1e-4  # worst 5.4e-6 on an x86-64 CPU, for logits up to 4.8
HOME = Path("build/oracles")
ORACLES = ("optimum", "genai")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Our answers, fed one way, against one oracle's answers. `problems` is empty if they agree."""

    oracle: str
    way: str
    num_prompts: int
    num_positions: int
    max_diff: float
    num_greedy: int
    greedy_equal: bool
    problems: tuple[str, ...]


def compare(ours: Answers, theirs: Answers, *, way: str) -> Comparison:
    """Compare the logits of every position of ours, and every greedy token, with the oracle's."""
    assert ours.by_prompt and ours.by_prompt.keys() == theirs.by_prompt.keys(), "both must answer the same prompts"
    oracle = " ".join(next(iter(theirs.versions.items())))
    diffs, problems, greedy_equal = [], [], True
    for name, answer in ours.by_prompt.items():
        diff = logit_diff(answer, theirs.by_prompt[name])
        diffs.append(diff.max())
        where = f"{oracle} and our graphs fed {way}, prompt '{name}'"
        if not diff.max() <= LIMIT:  # true for NaN too
            position = answer.positions[diff.argmax()]
            problems.append(f"{where}: logits after token {position} differ by {diff.max():.2e}")
        pairs = zip_longest(answer.greedy.tolist(), theirs.by_prompt[name].greedy.tolist())
        if unlike := [(index, *pair) for index, pair in enumerate(pairs) if pair[0] != pair[1]]:
            greedy_equal = False
            problems.append("{}: greedy token {} is {}, but the oracle has {}".format(where, *unlike[0]))
    return Comparison(
        oracle=oracle,
        way=way,
        num_prompts=len(diffs),
        num_positions=sum(len(answer.positions) for answer in ours.by_prompt.values()),
        max_diff=float(np.max(diffs)),
        num_greedy=sum(len(answer.greedy) for answer in ours.by_prompt.values()),
        greedy_equal=greedy_equal,
        problems=tuple(problems),
    )


def logit_diff(ours: Answer, theirs: Answer) -> np.ndarray:
    """Largest absolute difference at each of our positions (R,); NaN for a NaN, or where the oracle has no row."""
    diff = np.full(len(ours.positions), np.nan)
    _, mine, yours = np.intersect1d(ours.positions, theirs.positions, return_indices=True)
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, as intended
        diff[mine] = np.abs(ours.logits[mine].astype(np.float64) - theirs.logits[yours]).max(axis=1)
    return diff


def table(comparisons: list[Comparison]) -> Iterator[str]:
    yield f"{'oracle':26}{'our graphs fed':22}{'prompts':>8}{'positions':>11}{'max |diff|':>12}   greedy tokens"
    for found in comparisons:
        greedy = f"{found.num_greedy} equal" if found.greedy_equal else "DIFFER"
        yield (
            f"{found.oracle:26}{found.way:22}{found.num_prompts:8}{found.num_positions:11}{found.max_diff:12.1e}   "
            + greedy
        )


def run_oracle(name: str, case: Path) -> Answers:
    """Run an oracle in its own environment. Raises BackendUnavailable without one, BuildError if the oracle fails."""
    python, log = HOME / name / "bin" / "python", case / f"{name}.log"
    if not python.is_file():
        raise BackendUnavailable(
            f"the oracle '{name}' has no environment: {python} is missing. Each oracle has its own, because they "
            "need different versions of transformers, or packages that nothing else here needs. Make the environments "
            "and run this again: make oracles"
        )
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}  # a missing folder must not be taken for a model name to download
    with log.open("w", encoding="utf-8") as file:
        command = [str(python), "-m", f"tests.oracles.run_{name}", str(case)]
        result = subprocess.run(command, env=offline, stdout=file, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        end = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
        raise BuildError(
            f"the oracle '{name}' ended with exit code {result.returncode}, expected its answers. {log} ends with\n"
            f"  {end}\nLikely the versions are not those of tests/oracles/requirements-{name}.txt. Make the "
            f"environment again: rm -r {HOME / name} && make oracles"
        )
    return Answers.load(case / f"{name}.npz")


def compare_qwen2() -> None:
    """Compare the random Qwen2 and print a table. Raises PVCError; a ParityError if answers differ."""
    case = new_folder(HOME / "case")
    with timed("our graphs"):
        write_case(case)
        ours = our_answers(case, load_prompts(case))
    comparisons = []
    for name in ORACLES:
        theirs = ask_oracle(name, case)
        comparisons += [compare(answers, theirs, way=way) for way, answers in ours.items()]
    print("", *table(comparisons), sep="\n")
    require_agreement(comparisons)
    largest = max(np.abs(answer.logits).max() for answer in theirs.by_prompt.values())
    print(f"all agree: logits (up to {largest:.1f}) within {LIMIT:g}, greedy tokens equal\n")


def compare_smollm2() -> None:
    """Compare the real SmolLM2 with our reference and graphs. Raises what compare_qwen2 does."""
    case = new_folder(HOME / "smollm2-case")
    theirs = ask_oracle("smollm2", case)
    prompts = load_prompts(case)
    with timed("our checkpoint folder and graphs"):
        smollm2.write_checkpoint(case / MODEL, case / smollm2.CHECKPOINT)
        loaded = load_model(str(case / smollm2.CHECKPOINT))
        smollm2.write_bundle(loaded, case / smollm2.BUNDLE)
        bundle = open_bundle(case / smollm2.BUNDLE, runtime="cpu", unchecked=True)
    found, planted, decoder = [], [], loaded.model.llm
    with timed("our reference"):
        answers = smollm2.reference_answers(decoder, prompts, theirs)
        found.append(compare_steps.compare_steps(answers, theirs, what="our reference"))
    for way in smollm2.WAYS:
        with timed(f"our graphs, {way}"):
            answers = smollm2.graph_answers(bundle.sessions, prompts, theirs, way=way)
        found.append(compare_steps.compare_steps(answers, theirs, what=f"our graphs, {way}"))
    few = replace(theirs, by_prompt=dict(islice(theirs.by_prompt.items(), smollm2.NUM_PLANTED)))
    for defect, plant in smollm2.PLANTED.items():
        with timed(f"planted: {defect}"), plant(decoder):
            answers = smollm2.reference_answers(decoder, {name: prompts[name] for name in few.by_prompt}, few)
        planted.append(compare_steps.compare_steps(answers, few, what=f"planted: {defect}"))
    conversations = json.loads((case / CONVERSATIONS).read_text(encoding="utf-8"))
    texts = compare_steps.text_problems(bundle.tokenizer, conversations, prompts, theirs)
    print("", *compare_steps.table([*found, *planted]), sep="\n")
    compare_steps.require_agreement(found, planted, texts)
    print(f"all agree: logits within {compare_steps.LIMIT:g} of their range, tokens and texts; planted defects found")


def new_folder(path: Path) -> Path:
    """Make an empty folder, so that a failing oracle is not judged by old answers."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def ask_oracle(name: str, case: Path) -> Answers:
    with timed(f"oracle {name}"):
        theirs = run_oracle(name, case)
    print("  " + ", ".join(f"{package} {version}" for package, version in theirs.versions.items()))
    return theirs


@contextmanager
def timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - started:.1f} s", flush=True)


def require_agreement(comparisons: list[Comparison]) -> None:
    """Raise ParityError with all differences."""
    if problems := [problem for found in comparisons for problem in found.problems]:
        raise ParityError(
            "\n".join(problems) + f"\nExpected logits within {LIMIT:g} and the same greedy tokens. If both oracles "
            "differ in the same way, the fault is ours: if all three ways differ, likely in the reference, which the "
            "graphs match (.venv/bin/python -m pytest tests/pvc_ref), else in the runtime's cache (tests/engines). If "
            f"only one oracle differs, read its log in {HOME / 'case'}, and compare its versions with its "
            "requirements-*.txt"
        )


def main() -> int:
    exit_code = 0
    for run in (compare_qwen2, compare_smollm2):
        try:
            run()
        except PVCError as error:
            print(error, end="\n\n")
            exit_code = exit_code or error.exit_code
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
