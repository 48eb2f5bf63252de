"""What MkDocs shows: pages at the place they have in the repository, so that their links hold there and here.

Pages of methods get what RESULTS.md has of them and their configurations below; pages of the API are made from the
packages.
"""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lightning_advdef"
START = ["README.md", "RESULTS.md"]
GUIDES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
METHODS = sorted(str(path.relative_to(ROOT)) for path in (PACKAGE / "defenses").glob("*/README.md"))
FURTHER = ["checkpoints/README.md", "benchmarks/README.md"]
PACKAGES = [PACKAGE, *sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))]
API = {f"api/{path.name}.md": path for path in PACKAGES}
_ROLE = re.compile(r":(?:class|meth|func|attr):<code>")
_MEASURED = re.compile(r"RESULTS\.md#([\w-]+)")
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists the pages."""
    config.nav = [
        {"Start": START},
        {"Guides": GUIDES},
        {"Methods": METHODS},
        {"Networks and speed": FURTHER},
        {"API": [{path.name: page} for page, path in API.items()]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files of ``docs`` by all pages, and what they link to, under their path in the repository."""
    for file in list(files):
        if file.abs_src_path and Path(file.abs_src_path).parent.is_relative_to(ROOT / "docs"):
            files.remove(file)
    pages = [*START, *GUIDES, *METHODS, *FURTHER]
    linked = {path for page in pages for path in _linked(page)} - set(pages)
    for path in [*pages, *sorted(linked)]:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for page, package in API.items():
        files.append(File.generated(config, page, content=_reference(package)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts what was measured and the configurations of a method below its page."""
    if page.file.src_uri not in METHODS:
        return markdown
    to_root = "../" * page.file.src_uri.count("/")
    measured = [_section(anchor, to_root) for anchor in _MEASURED.findall(markdown)]
    folder = ROOT / "configs" / Path(page.file.src_uri).parent.name
    found = [_folded(path) for path in sorted(folder.glob("*.yaml"))]
    return "\n".join([markdown, *measured, "## Configurations\n", *found])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Drops the roles of Sphinx, which Markdown does not know, before the names in docstrings."""
    return _ROLE.sub("<code>", html)


def _reference(package: Path) -> str:
    """What a package says of itself, then each of its modules; the packages in it have pages of their own."""
    below = package.glob("*.py") if package == PACKAGE else package.rglob("*.py")
    modules = [path.relative_to(ROOT).with_suffix("").parts for path in sorted(below)]
    named = [".".join(parts) for parts in modules if not parts[-1].startswith("__")]
    first = f"::: {'.'.join(package.relative_to(ROOT).parts)}\n    options: {{members: false}}"
    return "\n\n".join([f"# {package.name}", first, *(f"::: {name}" for name in named)])


def _section(anchor: str, to_root: str) -> str:
    """A heading of RESULTS.md and what stands below it, up to the next one as high, links led to the root, as an h2."""
    parts = re.split(r"^(#+ .*)\n", (ROOT / "RESULTS.md").read_text(), flags=re.MULTILINE)[1:]
    headings = list(zip(parts[::2], parts[1::2], strict=True))
    anchors = [slugify(heading.lstrip("# "), "-") for heading, _ in headings]
    if anchors.count(anchor) != 1:
        raise PluginError(f"RESULTS.md has {anchors.count(anchor)} headings #{anchor}, a page wants one: {anchors}")
    first = anchors.index(anchor)
    level = _level(headings[first][0])
    below = takewhile(lambda part: _level(part[0]) > level, headings[first + 1 :])
    section = "".join(f"{heading[level - 2 :]}\n{text}" for heading, text in [headings[first], *below])
    return _LINK.sub(lambda link: link[0].replace("](", f"]({to_root}"), section)


def _level(heading: str) -> int:
    return len(heading) - len(heading.lstrip("#"))


def _linked(page: str) -> list[str]:
    """Files of the repository that a page links to, or shows."""
    targets = ((ROOT / page).parent / target for target in _LINK.findall((ROOT / page).read_text()))
    return [str(target.resolve().relative_to(ROOT)) for target in targets if target.is_file()]


def _folded(path: Path) -> str:
    lines = "".join(f"    {line}\n" for line in path.read_text().splitlines())
    return f'??? note "{path.relative_to(ROOT)}"\n\n    ```yaml\n{lines}    ```\n'
