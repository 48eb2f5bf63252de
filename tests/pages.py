"""What the pages tell a reader to run."""

import re
import subprocess
from itertools import pairwise

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("lightning_advdef/**/README.md"))]
PROGRAMS = ("advdef", "make", "tensorboard", "python", "torchrun", "srun", "sbatch")
_SHELL = ("", "bash", "sh")

# each program only tells how it was called; what is no program of the list ends the script
_PRELUDE = [
    "set -euo pipefail",
    "exec 3>&1 1>&2",
    "note() { local IFS=$'\\x1f'; printf '%s\\x1e' \"$*\" >&3; }",
    *(f'{program}() {{ note {program} "$@"; }}' for program in PROGRAMS),
]


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """Language and content of each fenced block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def is_shell(language):
    return language in _SHELL


def files(page):
    """Content of the first YAML or Python block behind each name of a file, by that name."""
    found, text = {}, page.read_text()
    for suffix, language in (("yaml", "yaml"), ("py", "python")):
        for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            named = re.findall(rf"`(\w+\.{suffix})`", text[: block.start()])
            if named:
                found.setdefault(named[-1], block[1])
    return found


def all_commands(page):
    """The words of each command of a page, in order."""
    return [words for language, block in blocks(page) if is_shell(language) for words in commands(block)]


def commands(block):
    """The words of each command of a shell block, loops unrolled and variables filled in."""
    script = "\n".join([*_PRELUDE, block])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, f"{done.stderr}(blocks of other kinds have a language, such as ```text)"
    return [noted.split("\x1f") for noted in done.stdout.split("\x1e")[:-1]]


def config_files(words):
    """The files behind each ``-c``."""
    return [file for flag, file in pairwise(words) if flag == "-c"]


def advdef_words(words):
    """The words behind ``advdef``, however it is started; None if another program is."""
    if words[0] == "advdef":
        return words[1:]
    if "lightning_advdef" in words:
        return words[words.index("lightning_advdef") + 1 :]
    return None
