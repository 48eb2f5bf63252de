"""`lightning_advdef.evaluate` against `advdef test` and against known answers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lightning_advdef
from lightning_advdef.__main__ import run
from lightning_advdef.attacks import FGSM, PGD, DeepFool
from lightning_advdef.data import Digits
from lightning_advdef.defenses import StandardModule
from lightning_advdef.errors import ResultFolderError
from lightning_advdef.evaluation import JudgeSettings, Scenario, evaluate
from lightning_advdef.evaluation.gallery import read_gallery
from lightning_advdef.models import MLP
from tests.conftest import GOLDEN, result_of, scenario
from tests.toys import COUNT, Foreign, NoisyInput, linear_problem

SCENARIOS = [Scenario("pgd", PGD(eps=0.1, steps=3)), Scenario("df", DeepFool(steps=3))]


def linear_model(folder):
    state = load_file(linear_problem(folder)[1])
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    network[1].load_state_dict({name.removeprefix("head."): value for name, value in state.items()})
    return Centred(network)


class Centred(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network((images - 0.5) / 0.5)


def linear_images(folder):
    with np.load(linear_problem(folder)[0]) as data:
        return torch.from_numpy(data["x_test"]), torch.from_numpy(data["y_test"])


@pytest.fixture
def foreign():
    generator = torch.Generator().manual_seed(1)
    return Foreign().eval(), torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 10


def test_robust_accuracy_of_a_linear_network_is_known(tmp_path):
    distances = linear_problem(tmp_path)[2]["linf"]
    images, labels = linear_images(tmp_path)
    found = evaluate(linear_model(tmp_path), images, labels, [Scenario("fgsm", FGSM(eps=0.1))])
    assert found.accuracies == {"clean": np.mean(distances > 0), "fgsm": np.mean(distances > 0.1)}
    assert len(found.rows["index"]) == COUNT


def test_rows_and_summary_are_those_of_the_command_line(advdef):
    entries = [scenario("pgd", "PGD", eps=0.1, steps=3), scenario("df", "DeepFool", steps=3)]
    summary, rows = result_of(advdef.digits("test", scenarios=entries))
    data = Digits(limit=20)
    data.setup("test")
    images, labels, indices = next(iter(data.test_dataloader()))
    defense = StandardModule(
        lambda spec: MLP(spec, hidden=[32]), "digits", weights=str(GOLDEN / "digits_mlp.safetensors")
    )
    defense.setup("test")
    found = evaluate(defense, images, labels, SCENARIOS, indices=indices, mean_image=data.mean_image())
    assert found.rows.keys() == rows.keys()
    for name, column in rows.items():
        np.testing.assert_array_equal(found.rows[name].numpy(), column)
    circumstances = {"schema", "fingerprint", "date", "scenarios", "processes", "weights_file"}
    assert found.result.keys() - circumstances == summary.keys() - circumstances
    assert found.fingerprint["data"]["images"] == summary["fingerprint"]["data"]["images"]
    for ours, theirs in zip(found.result["scenarios"], summary["scenarios"], strict=True):
        assert json.loads(json.dumps(ours["robust_accuracy"])) == theirs["robust_accuracy"]


def test_what_is_saved_is_read_by_the_report(tmp_path, capsys, foreign):
    model, images, labels = foreign
    found = evaluate(model, images, labels, SCENARIOS)
    assert found.save(tmp_path / "one") == tmp_path / "one"
    names = ["examples.npz", "robustness.json", "robustness.npz"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    assert {*read_gallery(tmp_path / "one" / "examples.npz")} == {"pgd", "df"}
    run(["report", str(tmp_path / "one")])
    printed = capsys.readouterr().out
    for part in ("clean accuracy", "pgd", "df: rho", "12"):
        assert part in printed
        assert part in str(found)


def test_a_different_result_is_overwritten_only_if_asked(tmp_path, foreign):
    model, images, labels = foreign
    evaluate(model, images, labels, SCENARIOS[:1]).save(tmp_path)
    other = evaluate(model, images.flip(0), labels, SCENARIOS[:1])
    with pytest.raises(ResultFolderError, match=r"different run .*: .* save\(folder, overwrite=True\)$"):
        other.save(tmp_path)
    other.save(tmp_path, overwrite=True)
    other.save(tmp_path)
    assert result_of(tmp_path)[0]["fingerprint"]["data"]["images"] == other.fingerprint["data"]["images"]


def test_the_network_stays_as_it_was(foreign):
    model, images, labels = foreign
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, images, labels, SCENARIOS[:1])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_batch_size_does_not_change_verdicts(foreign):
    whole, parts = (evaluate(*foreign, SCENARIOS[:1], JudgeSettings(batch_size=size)) for size in (256, 5))
    assert torch.equal(whole.rows["pgd/prediction"], parts.rows["pgd/prediction"])


def test_random_numbers_belong_to_the_indices(foreign):
    _, images, labels = foreign
    defense = NoisyInput(lambda spec: MLP(spec, hidden=[8]), "1x8x8x10")
    turned = torch.arange(11, -1, -1)
    first = evaluate(defense, images, labels, SCENARIOS[:1])
    second = evaluate(defense, images[turned], labels[turned], SCENARIOS[:1], indices=turned)
    third = evaluate(defense, images[turned], labels[turned], SCENARIOS[:1])
    assert first.result["stochastic"]
    assert torch.equal(first.rows["clean/prediction"], second.rows["clean/prediction"])
    assert not torch.equal(first.rows["clean/margin"].flip(0), third.rows["clean/margin"])


def test_another_activation_is_another_network(tmp_path, foreign):
    model, images, labels = foreign
    networks = [nn.Sequential(model, activation) for activation in (nn.Identity(), nn.Sigmoid())]
    evaluate(networks[0], images, labels, []).save(tmp_path)
    with pytest.raises(ResultFolderError, match=r"Identity.* there, Sigmoid"):
        evaluate(networks[1], images, labels, []).save(tmp_path)


def test_whether_a_defense_is_random_does_not_depend_on_the_order_of_the_images(foreign):
    class Noisy(nn.Module):
        """Adds noise to the first image."""

        def forward(self, images):
            first = (images == foreign[1][0]).flatten(1).all(dim=1)[:, None, None, None]
            return foreign[0](images + first * torch.randn_like(images))

    turned = torch.arange(11, -1, -1)
    settings = JudgeSettings(batch_size=4, strict=True)
    for order in (turned, turned.flip(0)):
        images, labels = foreign[1][order], foreign[2][order]
        assert evaluate(Noisy(), images, labels, [], settings, indices=order).result["stochastic"]


def test_pixels_of_another_range_are_refused_before_anything_runs(foreign):
    model, images, labels = foreign
    for given, remedy in ((images * 255, "divide them by 255"), (images * 4 - 2, "look normalised"), (-images, "")):
        with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got .*: .*{remedy}"):
            evaluate(model, given, labels, [])
    with pytest.raises(ValueError, match=r"must be float32 .*, got torch.uint8 .*: divide them by 255"):
        evaluate(model, (images * 255).byte(), labels, [])


def test_arrays_are_taken_as_tensors(foreign):
    model, *tensors = foreign
    ours = evaluate(model, *(tensor.numpy() for tensor in tensors), SCENARIOS[:1], indices=np.arange(12))
    theirs = evaluate(model, *tensors, SCENARIOS[:1])
    assert all(torch.equal(column, theirs.rows[name]) for name, column in ours.rows.items())


class Answering(nn.Module):
    """Gives what a function makes of logits."""

    def __init__(self, answer):
        super().__init__()
        self.network, self.answer = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), answer

    def forward(self, images):
        return self.answer(self.network(images))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda logits: logits.softmax(dim=1), "Answering gives probabilities, .*: remove its last softmax"),
        (lambda logits: (logits, logits), r"must give logits of shape \(N, K\) .*, got a tuple for 12 images: wrap"),
        (lambda logits: logits[:, :1], r"got a tensor of shape \(12, 1\) .*: .*single logit z, torch.cat"),
        (lambda logits: logits[:, 0], r"got a tensor of shape \(12,\)"),
        (lambda logits: logits[:, :6], "labels go up to 9, but Answering knows classes 0 to 5: give"),
    ],
)
def test_a_network_that_gives_no_logits_is_refused(foreign, answer, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Answering(answer), *foreign[1:], SCENARIOS)


def test_one_row_that_looks_like_probabilities_is_no_reason_to_refuse(foreign):
    def some(logits):
        return torch.cat([logits[:1].softmax(dim=1), logits[1:]])

    assert len(evaluate(Answering(some), *foreign[1:], SCENARIOS[:1]).rows["index"]) == 12


def test_what_is_no_module_is_refused(foreign):
    with pytest.raises(ValueError, match=r"must be a torch.nn.Module, got function"):
        evaluate(lambda images: foreign[0](images), *foreign[1:], SCENARIOS)


@pytest.mark.parametrize("scenarios", [[PGD(0.1)], PGD(0.1), [SCENARIOS[0], PGD(0.1)]])
def test_a_bare_attack_is_no_scenario(foreign, scenarios):
    with pytest.raises(ValueError, match=r"list of Scenario, .*, got PGD: write \[Scenario\('pgd', PGD\(...\)\)\]"):
        evaluate(*foreign, scenarios)


def test_a_single_scenario_is_a_list_of_one(foreign):
    assert evaluate(*foreign, SCENARIOS[0]).accuracies.keys() == {"clean", "pgd"}


def test_names_of_suites_are_not_listed(foreign):
    with pytest.raises(ValueError, match=r"the name or path of one suite, got str"):
        evaluate(*foreign, ["quick"])


@pytest.mark.parametrize("indices", [torch.zeros(12, dtype=torch.int64), torch.arange(11), torch.arange(12.0)])
def test_indices_that_do_not_number_the_images_are_refused(foreign, indices):
    with pytest.raises(ValueError, match="12 different int64"):
        evaluate(*foreign, [], indices=indices)


def test_no_images_are_refused(foreign):
    with pytest.raises(ValueError, match="no images"):
        evaluate(foreign[0], foreign[1][:0], foreign[2][:0], SCENARIOS)


def test_the_package_is_imported_without_torch():
    script = "import sys, lightning_advdef; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"
    assert lightning_advdef.evaluate is evaluate
    with pytest.raises(AttributeError, match="no attribute 'evaluation_of'"):
        _ = lightning_advdef.evaluation_of
