"""The documentation is built without a warning: no link leads nowhere."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.pages import PAGES


@pytest.mark.slow
def test_every_page_and_every_package_is_in_the_documentation(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        place = page.relative_to(ROOT).with_suffix(".html")
        assert (tmp_path / (place.with_name("index.html") if page.stem == "README" else place)).is_file()
    for package in (ROOT / "lightning_advdef").glob("*/__init__.py"):
        assert f"lightning_advdef.{package.parent.name}" in (tmp_path / f"api/{package.parent.name}.html").read_text()
    method = (tmp_path / "lightning_advdef/defenses/deep_defense/index.html").read_text()
    assert "configs/deep_defense/mnist.yaml" in method
    # what was measured, down to its last part and no further
    assert "What stronger attacks say about the same networks" in method
    assert "Generators as attacks" not in method
    # nothing is fetched when a page is opened
    assert 'src="http' not in method
