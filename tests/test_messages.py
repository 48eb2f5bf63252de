"""One sentence from the nested messages of the argument parser."""

import io

import pytest
from rich.console import Console

from lightning_advdef import messages
from lightning_advdef.cli import AdvDefCLI
from lightning_advdef.messages import shorten, with_bar
from tests.conftest import scenario

DIGITS = ["test", "--model=StandardModule", "--data=Digits"]


@pytest.fixture
def sentence(tmp_path, monkeypatch):
    """What is said of arguments, or of the text of a configuration."""
    (tmp_path / "own_net.py").write_text("from torch.nn import Linear as OwnNet")
    monkeypatch.syspath_prepend(tmp_path)

    def call(*arguments, text=None):
        if text is not None:
            (tmp_path / "own.yaml").write_text(text)
            arguments = (*arguments, "-c", str(tmp_path / "own.yaml"))
        with pytest.raises(Exception) as caught:  # noqa: PT011 - which kind is the parser's business
            AdvDefCLI(args=[*DIGITS, *arguments])
        return shorten(str(caught.value))

    return call


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("own_nett.OwnNet", "model.network.module: No module named 'own_nett'"),
        ("own_net.OwnNett", "model.network.module: module 'own_net' has no attribute 'OwnNett'"),
    ],
)
def test_a_mistyped_own_network(sentence, module, expected):
    wrapped = ["--model.network=WrappedClassifier", f"--model.network.init_args.module={module}"]
    assert sentence(*wrapped) == expected
    network = f"{{class_path: WrappedClassifier, init_args: {{module: {{class_path: {module}}}}}}}"
    assert sentence(text=f"model: {{class_path: StandardModule, init_args: {{network: {network}}}}}") == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data.limt=3"], "data: Digits takes no limt: did you mean limit or limit_val?"),
        (["--model.wieghts=x"], "model: StandardModule takes no wieghts: did you mean weights?"),
        (["--model.purifier=JPEG"], "model: StandardModule takes no purifier"),
        (
            ["--model.network=MLP", "--model.network.hiden=[3]"],
            "model.network: MLP takes no hiden: did you mean hidden?",
        ),
        (
            [
                "--model.network=WrappedClassifier",
                "--model.network.module=own_net.OwnNet",
                "--model.network.module.bais=1",
            ],
            "model.network.module: OwnNet takes no bais: did you mean bias?",
        ),
        (["--evaluation.darws=3"], "unrecognized arguments: --evaluation.darws=3: did you mean draws?"),
        (["--trainer.max_epoch=3"], "unrecognized arguments: --trainer.max_epoch=3: did you mean max_epochs"),
    ],
)
def test_a_mistyped_option(sentence, arguments, expected):
    assert sentence(*arguments).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {init_args: {limt: 3}}", "data: Digits takes no limt: did you mean limit or limit_val?"),
        ("evaluation: {darws: 3}", "does not accept option 'evaluation.darws': did you mean draws?"),
        (
            f"evaluation: {{scenarios: [{scenario('a', 'PGD', eps=0.1, step=5)}]}}",
            "evaluation.scenarios.attack: PGD takes no step: did you mean steps or step_size?",
        ),
        (
            "evaluation: {scenarios: [{name: a, atack: {class_path: PGD, init_args: {eps: 0.1}}}]}",
            "evaluation.scenarios: Scenario takes no atack: did you mean attack?",
        ),
    ],
)
def test_a_mistyped_option_in_a_file(sentence, text, expected):
    assert sentence(text=text).endswith(expected)


@pytest.mark.parametrize(
    ("terminal", "shown", "drawn"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_work_has_a_bar_on_a_terminal_alone(monkeypatch, terminal, shown, drawn):
    output = io.StringIO()
    monkeypatch.setattr(messages, "TERMINAL", Console(file=output, force_terminal=terminal, width=80))
    assert list(with_bar([3, 1, 2], "counting", shown)) == [3, 1, 2]
    assert ("counting" in output.getvalue()) == drawn
