"""The figures of a check's page: drift, heat maps, bars and curves."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from engines.errors import SpecError
from engines.metrics import metrics_of
from pvc_export.parity.heat import heat_map, worst_heat_maps
from pvc_export.parity.places import Place
from pvc_export.report import ReportInput, junit, render
from pvc_export.terminal.numbers import share
from pvc_ref import PVCConfig

from .html_page import Page
from .samples import (
    BUNDLE,
    FRAME,
    changed,
    difference,
)
from .test_page import drift


def test_a_drift_is_shown_with_its_interval_and_fails(passing: ReportInput) -> None:
    steady = changed(passing, drift=drift(1e-3))
    assert steady.parity.passed and "[+0%, +0%] above the floor" in Page(render(steady)).text.replace("-0%", "+0%")
    grown = changed(passing, drift=drift(9.0))
    assert not grown.parity.passed and grown.parity.levels()["E"].passed is False
    assert ET.fromstring(junit(grown)).find("testsuite[@name='level E']/testcase/failure") is not None


@pytest.mark.parametrize(
    ("graph", "tensor", "tokens", "at"),
    [
        ("trunk", "trunk_features", 17, 1 + 6),
        ("temporal", "features", 16, 6),
        ("compressor", "frame_embeds", 16, 6),
    ],
    ids=lambda value: str(value),
)
def test_a_heat_map_puts_a_known_error_at_its_patch(graph: str, tensor: str, tokens: int, at: int) -> None:
    want = np.random.default_rng(0).normal(size=(1, tokens, 8))
    got = want.copy()
    got[0, at, 3] += 2.0
    heat = heat_map(
        got, want, at=difference(BUNDLE, graph, tensor, Place("frame", 1)), frame=FRAME,
        has_class_token=tensor == "trunk_features",
    )  # fmt: skip
    assert heat.errors.shape == (4, 4) and heat.peak == (1, 2) and np.count_nonzero(heat.errors) == 1
    assert (heat.class_token == 0.0) if tokens == 17 else (heat.class_token is None)
    whole = metrics_of(got, want)
    assert heat.worst == pytest.approx(whole.worst_token)


def test_a_heat_map_is_drawn_over_its_frame_with_a_box_around_the_worst_token(passing: ReportInput) -> None:
    want = np.ones((1, 16, 8))
    got = want.copy()
    got[0, 6] *= 3
    heat = heat_map(
        got, want, at=difference(BUNDLE, "temporal", "features", Place("frame", 1)),
        frame=FRAME, has_class_token=False,
    )  # fmt: skip
    page = Page(render(changed(passing, heat=(heat,))))
    assert f"row 1, column 2: {share(2 / heat.limit)} of its limit" in page.text
    assert sum(tag == "image" and name == "href" for tag, name, _ in page.attributes) == 2
    index = page.attributes.index(("rect", "class", "peak"))
    box = {name: value for _, name, value in page.attributes[index - 4 : index]}
    assert box == {"x": "100.00", "y": "50.00", "width": "50.00", "height": "50.00"}


@pytest.mark.parametrize("shuffle", ["v1", "v2"])
def test_tokens_that_are_listed_column_by_column_are_laid_out_so(shuffle: str) -> None:
    tiny = PVCConfig.preset("tiny")
    config = replace(tiny, compressor=replace(tiny.compressor, num_tokens=4, shuffle=shuffle))  # type: ignore[arg-type]
    patches, width = config.vision.num_patches, 6
    want = {
        "trunk/trunk_features": np.ones((1, patches + 1, width)),
        "temporal/features": np.ones((1, patches, width)),
        "compressor/frame_embeds": np.ones((1, 4, width)),
    }
    got = {name: array.copy() for name, array in want.items()}
    got["compressor/frame_embeds"][0, 1] *= 2
    maps = worst_heat_maps(
        BUNDLE, [want, got, want], [want] * 3, pixels=[FRAME] * 3, times=[0, 1, 9], config=config, num_frames=1
    )
    assert [heat.at.tensor for heat in maps] == ["trunk_features", "features", "frame_embeds"]
    assert maps[-1].at.where == Place("frame", 1) and maps[-1].peak == ((1, 0) if shuffle == "v1" else (0, 1))


def test_tokens_that_do_not_fill_a_grid_have_no_map() -> None:
    with pytest.raises(SpecError, match="15 tokens of 'temporal/features' do not fill a grid of 3 x 3"):
        heat_map(
            np.ones((1, 15, 2)), np.ones((1, 15, 2)), at=difference(BUNDLE, "temporal", "features", Place("frame", 0)),
            frame=FRAME, has_class_token=False,
        )  # fmt: skip
