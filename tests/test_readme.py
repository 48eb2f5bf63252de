"""The Python of the README runs as it stands there."""

import re

import torch
from pytorch_lightning import Trainer

from tests.conftest import ROOT
from tests.toys import Foreign, foreign_loader


def test_python_examples_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    images, labels = next(iter(foreign_loader(count=4)))
    names = {"network": Foreign().eval(), "images": images, "labels": labels, "Trainer": Trainer}
    names |= {"my_module": Foreign(), "my_data": foreign_loader()}
    for block in blocks:
        exec(block, names)
    assert torch.isfinite(names["adversarial"]).all()
    assert list(tmp_path.rglob("robustness.json"))
