"""Charts and images as text that stands inside a page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib as mpl
from PIL import Image
from torch import Tensor

from lightning_advdef.evaluation.chart import Chart
from lightning_advdef.evaluation.examples import examples_of
from lightning_advdef.evaluation.figures import draw
from lightning_advdef.evaluation.gallery import read_gallery
from lightning_advdef.evaluation.run import Run
from lightning_advdef.evaluation.store import GALLERY_FILE

_LARGEST = 112  # pixels of a side; larger images are shrunk, so that the page stays small
_SHOWN = 6  # scenarios with pictures
# what the page sets itself, so that figures follow its light and dark colours
_COLORS = {"#000000": "currentColor", "#e6e6e6": "var(--line)", "#555555": "var(--muted)", "#ffffff": "var(--page)"}


class Picture(NamedTuple):
    """An image that was attacked, as data addresses of PNG files.

    Attributes:
        clean: Before the attack.
        adversarial: After it.
        difference: What was added, scaled to its own range; no change is grey.
        caption: Classes and size of the perturbation.
    """

    clean: str
    adversarial: str
    difference: str
    caption: str


class Row(NamedTuple):
    """Pictures of a scenario, the least robust first.

    Attributes:
        scenario: Its name.
        pictures: At least one.
    """

    scenario: str
    pictures: tuple[Picture, ...]


def svg(chart: Chart, number: int) -> str:
    """A chart in the page's own colours and fonts; ``number`` tells its inner names from those of others."""
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": str(number), "font.family": "sans-serif"}):
        draw(chart).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for color, ours in _COLORS.items():
        text = text.replace(color, ours)
    return text


def gallery_rows(run: Run) -> list[Row]:
    """The least and the most robust images of the scenarios that leave least, of which the evaluation kept some."""
    path = run.folder / GALLERY_FILE
    if not path.is_file():
        return []
    kept = read_gallery(path)
    examples = examples_of(kept, run.rows)
    strongest = sorted(run.result["scenarios"], key=lambda scenario: float(scenario["robust_accuracy"]["value"]))
    names = [scenario["name"] for scenario in strongest if scenario["name"] in examples][:_SHOWN]
    return [
        Row(
            name,
            tuple(
                _picture(clean, adversarial, _caption(run, name, index))
                for clean, adversarial, index in zip(
                    examples[name].clean, examples[name].adversarial, kept[name].indices.tolist(), strict=True
                )
            ),
        )
        for name in names
    ]


def _picture(clean: Tensor, adversarial: Tensor, caption: str) -> Picture:
    difference = adversarial - clean
    scaled = difference / difference.abs().max().clamp_min(1e-12) / 2 + 0.5
    return Picture(_png(clean), _png(adversarial.clamp(0, 1)), _png(scaled), caption)


def _caption(run: Run, name: str, index: int) -> str:
    place = int((run.rows["index"] == index).nonzero()[0])
    found: Mapping[str, float] = {key: column[place].item() for key, column in run.rows.items()}
    classes = f"{found['label']:.0f}: {found['clean/prediction']:.0f} → {found[f'{name}/prediction']:.0f}"
    return f"image {index}, {classes}, linf {found[f'{name}/linf']:.3g}, l2 {found[f'{name}/l2']:.3g}"


def _png(pixels: Tensor) -> str:
    array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)
    image.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
