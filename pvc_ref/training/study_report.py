"""Tables and plot of the study."""

from __future__ import annotations

from pathlib import Path

from .held_out import Row, markdown_table
from .study import (
    LENGTHS,
    NUM_CLIPS,
    NUM_STEPS,
    NUM_TOKENS,
    REPEATS,
    SEEDS,
    Result,
    Tables,
    families,
    spread,
)

VIDEO_TOPICS = ("colour", "shape", "count", "direction", "event", "describe", "absent")
CARD_TOPICS = ("number 1", "number 2", "number 4")
MAIN_LENGTH = 8


def report(results: dict[str, Result]) -> str:
    """Format all measurements as Markdown."""
    grouped = families(results)
    parts = [
        "# A small comparison of PVC with its baselines",
        "`python -m pvc_ref.evaluate --study` made this file, its plot and all of its models. Each starts from the ViT "
        f"and the LLM of the bundled model: {NUM_STEPS} steps of the same data, {NUM_TOKENS} tokens per frame "
        f"(16 patches each), one process. Percent of held-out questions answered word for word, greedy, clean frames, "
        f"{NUM_CLIPS} clips per cell. Mean and standard deviation over seeds {', '.join(map(str, SEEDS))} for PVC and "
        "pixel shuffle, otherwise seed 0.",
        f"![accuracy by method](figures/study.png)\n\n## By topic: videos of {MAIN_LENGTH} frames",
        _table(grouped, f"video, {MAIN_LENGTH} frames", VIDEO_TOPICS),
        "## By topic: still images, once",
        _table(grouped, "still, 1 x", ("colour", "shape", "count", "describe", *CARD_TOPICS)),
        "## Repeats of a still image: codes read",
        _by(grouped, [f"still, {repeats} x" for repeats in REPEATS], CARD_TOPICS),
        "## Frames of a video: direction",
        _by(grouped, [f"video, {length} frames" for length in LENGTHS], ("direction",)),
        "## Training time",
        "Two runs at a time, each on one core, some of them while other programs ran.",
        markdown_table(
            ("training, minutes", "machine"),
            {name: [f"{result.seconds / 60:.1f}", result.machine] for name, result in results.items()},
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _cell(members: list[Tables], row: str, topic: str) -> str:
    values = [result[row][topic].percent for result in members if topic in result.get(row, {})]
    if not values:
        return ""
    middle, deviation = spread(values)
    return f"{middle:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")


def _table(grouped: dict[str, list[Tables]], row: str, topics: tuple[str, ...]) -> str:
    body = {name: [_cell(members, row, topic) for topic in topics] for name, members in grouped.items()}
    counts: Row = next(iter(grouped.values()))[0][row]
    return markdown_table(topics, body | {"questions": [str(counts[topic].count) for topic in topics]})


def _by(grouped: dict[str, list[Tables]], rows: list[str], topics: tuple[str, ...]) -> str:
    columns = [(row, topic) for topic in topics for row in rows]
    heads = [f"{topic}: {row.split(', ')[1]}" for row, topic in columns]
    body = {name: [_cell(members, row, topic) for row, topic in columns] for name, members in grouped.items()}
    return markdown_table(heads, body)


def plot(results: dict[str, Result], path: Path) -> None:
    """Plot accuracy by topic, with the spread over seeds, and codes read by number of repeats."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grouped = families(results)
    topics = ("direction", "event", "describe", "colour", "shape", "count")
    figure, (bars, lines) = plt.subplots(1, 2, figsize=(13, 4.8), width_ratios=(2.4, 1), layout="constrained")
    width = 0.8 / len(grouped)
    for index, (name, members) in enumerate(grouped.items()):
        where = [position + (index - (len(grouped) - 1) / 2) * width for position in range(len(topics))]
        heights, errors = _spreads(members, [(f"video, {MAIN_LENGTH} frames", topic) for topic in topics])
        bars.bar(where, heights, width, yerr=errors, label=name, error_kw={"lw": 1})
        heights, errors = _spreads(members, [(f"still, {repeats} x", "number 4") for repeats in REPEATS])
        lines.errorbar(REPEATS, heights, yerr=errors, marker="o")
    bars.axhline(20, color="grey", lw=1, ls=":", label="direction by chance, 20 %")
    bars.set_xticks(range(len(topics)), topics)
    bars.set_ylabel("right, %")
    bars.set_ylim(0, 100)
    bars.set_title(f"videos of {MAIN_LENGTH} frames, {NUM_TOKENS} tokens per frame")
    lines.set_xscale("log", base=2)
    lines.set_xticks(REPEATS, [str(repeats) for repeats in REPEATS])
    lines.set_xlabel("repeats of the image")
    lines.set_ylim(0, 100)
    lines.set_title("cards of four codes: codes read right, %", fontsize="medium")
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _spreads(members: list[Tables], cells: list[tuple[str, str]]) -> tuple[list[float], list[float]]:
    """Means and standard deviations at each (row, topic); 0 for a single value."""
    found = [spread([result[row][topic].percent for result in members]) for row, topic in cells]
    return [middle for middle, _ in found], [deviation or 0.0 for _, deviation in found]
