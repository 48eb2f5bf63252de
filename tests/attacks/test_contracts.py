"""What every exported attack promises, in every norm it knows."""

import copy
import dataclasses
import inspect
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import lightning_advdef.attacks as attacks
from lightning_advdef.attacks import APGD, BIM, DDN, PGD, AutoAttack, FixedBudgetAttack, FullGradient, Undefended
from lightning_advdef.attacks.lp_ball import lp_norm
from lightning_advdef.attacks.surrogates.passes import Passes
from lightning_advdef.rng import SampleRNG
from lightning_advdef.types import Eps
from tests.attacks.helpers import (
    ALL_SETTINGS,
    BUDGETS,
    EXPORTED,
    KNOWING,
    ONE_OF_EACH,
    SETTINGS,
    WITH_GRADIENTS,
    Strict,
    is_random,
    make_network,
    middle_images,
    name_of,
    right,
    seeded,
    three_wrong,
)

FIXED_BUDGET = [attack for attack in EXPORTED if issubclass(attack, FixedBudgetAttack)]
TAKING_EPS = [attack for attack in FIXED_BUDGET if "eps" in inspect.signature(attack).parameters]


@pytest.fixture(params=ALL_SETTINGS, ids=name_of)
def attack(request):
    return request.param


def rng_of(seed):
    return SampleRNG.for_images(torch.arange(16), seed)


def plain(network):
    return network


class Attacked(NamedTuple):
    """One call of an attack: what came back, and what it left of what it was given."""

    adversarial: Tensor
    images: Tensor
    labels: Tensor
    rng: SampleRNG | None
    passes: Passes | None
    batch_sizes: set[int]
    torch_drew: bool


@cache
def attacked(attack, make=plain, seed=None):
    """The call on the images of the fixtures that many facts share, each kind of surrogate and seed once."""
    network, images = seeded(make_network).eval(), middle_images(16, 2, 6, 6, spread=0.5)
    labels, rng, sizes = three_wrong(network, images), None if seed is None else rng_of(seed), set()
    network.register_forward_pre_hook(lambda _, arguments: sizes.add(len(arguments[0])))
    surrogate = make(network)
    passes = None if surrogate is network else surrogate.start_counting(16, images.device)
    state = torch.get_rng_state()
    adversarial = attack(surrogate, images, labels, rng)
    drew = not torch.equal(torch.get_rng_state(), state)
    return Attacked(adversarial, images, labels, rng, passes, sizes, drew)


@pytest.mark.parametrize("exported", EXPORTED)
def test_every_exported_attack_has_settings_to_be_tested_with(exported):
    assert exported in SETTINGS, f"tell tests/attacks/helpers.py the SETTINGS with which {exported.__name__} is tested"


@pytest.mark.parametrize("exported", FIXED_BUDGET)
def test_settings_cover_every_norm_of_a_fixed_budget_attack(exported):
    assert {attack.norm for attack in SETTINGS[exported]} == set(exported.norms)


# what comes back


def test_adversarial_images_are_pixels_like_those_given(attack, images):
    adversarial = attacked(attack).adversarial
    assert adversarial.shape == images.shape
    assert adversarial.dtype == torch.float32
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_adversarial_images_are_detached_and_new(attack):
    found = attacked(attack)
    assert not found.adversarial.requires_grad
    assert found.adversarial.data_ptr() != found.images.data_ptr()


def test_images_with_a_graph_give_images_without_one(attack, network, images, labels):
    with_graph = images.clone().requires_grad_() * 1
    adversarial = attack(network, with_graph, labels)
    assert not adversarial.requires_grad
    assert torch.equal(adversarial, attacked(attack).adversarial)


@pytest.mark.parametrize(
    "attack", [attack for attack in ALL_SETTINGS if isinstance(attack, FixedBudgetAttack)], ids=name_of
)
def test_budgets_are_kept(attack, images):
    size = lp_norm((attacked(attack).adversarial - images).double(), attack.norm)
    assert (size <= attack.eps * (1 + 1e-5) + 1e-5).all()


@pytest.mark.parametrize("attack", KNOWING, ids=name_of)
def test_attacks_fool_the_network_somewhere(attack, network, images, labels):
    still_right = right(network, attacked(attack).adversarial, labels)
    assert still_right.sum() < right(network, images, labels).sum()


def test_a_plain_network_is_attacked_through_its_full_gradient(attack):
    assert torch.equal(attacked(attack, seed=5).adversarial, attacked(attack, FullGradient, 5).adversarial)


# what an image's result depends on


def test_attacks_repeat_bit_by_bit(attack, network, images, labels):
    assert torch.equal(attack(network, images, labels, rng_of(5)), attacked(attack, seed=5).adversarial)


def test_no_rng_means_seed_zero_and_the_position_in_the_batch(attack):
    assert torch.equal(attacked(attack).adversarial, attacked(attack, seed=0).adversarial)


def test_only_random_attacks_depend_on_the_seed(attack):
    if attack.parts():
        pytest.skip("depends on which part breaks the images")
    first, second = (attacked(attack, seed=seed).adversarial for seed in (0, 5))
    assert torch.equal(first, second) != is_random(attack)


def test_attacks_leave_torchs_own_generator_alone(attack):
    assert not attacked(attack).torch_drew


def test_verdicts_do_not_depend_on_the_split_of_the_batch(attack, network, images, labels):
    rng, whole = rng_of(5), right(network, attacked(attack, seed=5).adversarial, labels)
    parts = [torch.arange(16) < 5, torch.arange(16) == 5, torch.arange(16) > 5]
    split = [right(network, attack(network, images[part], labels[part], rng[part]), labels[part]) for part in parts]
    assert torch.equal(torch.cat(split), whole)


def test_in_a_fixed_shape_results_do_not_depend_on_the_order_bit_by_bit(attack, network, images, labels):
    rng, together = rng_of(5), attacked(attack, Strict, 5).adversarial
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(attack(Strict(network), images[order], labels[order], rng[order]), together[order])


def test_in_a_fixed_shape_results_do_not_depend_on_the_neighbours_bit_by_bit(attack, network, images, labels):
    rng, together = rng_of(5), attacked(attack, Strict, 5).adversarial
    padded = torch.cat([torch.arange(6), torch.zeros(10, dtype=torch.int64)])
    assert torch.equal(attack(Strict(network), images[padded], labels[padded], rng[padded])[:6], together[:6])


def test_leaving_the_batch_does_not_change_the_verdict(attack, network, labels):
    free, strict = (right(network, attacked(attack, make, 5).adversarial, labels) for make in (FullGradient, Strict))
    assert torch.equal(free, strict)


def test_a_fixed_shape_is_all_the_network_ever_sees(attack):
    draws = {AutoAttack.eot_samples * 16} if getattr(attack, "version", None) == "rand" else set()
    assert attacked(attack, Strict, 5).batch_sizes == {16} | draws or attack.needs == "nothing"


class Shifted(Undefended):
    """Adds a constant to every loss, as an adaptive surrogate adds a loss of its own."""

    constant = 0.0

    def auxiliary(self, images, labels, rng):
        return torch.full_like(images[:, 0, 0, 0], self.constant)


# as in the authors' code, APGD compares its first loss with 0
WITHOUT_APGD = [attack for attack in WITH_GRADIENTS if not isinstance(attack, APGD | AutoAttack)]


@pytest.mark.parametrize("constant", [8.0, -8.0])
@pytest.mark.parametrize("attack", WITHOUT_APGD, ids=name_of)
def test_a_constant_in_the_loss_changes_nothing(attack, network, images, labels, constant):
    shifted = Shifted(network)
    shifted.constant = constant
    found, expected = attack(shifted, images, labels), attacked(attack, Shifted).adversarial
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


STARTED = [PGD(0.05, steps=4, restarts=3, start=BIM(0.02, steps=2)), APGD(0.05, steps=4, restarts=3, start=DDN(3))]


@pytest.mark.parametrize("attack", ALL_SETTINGS + STARTED, ids=name_of)
def test_a_fixed_shape_costs_an_image_what_it_costs_alone(attack):
    free, strict = (attacked(attack, make, 5).passes for make in (FullGradient, Strict))
    assert torch.equal(free.forward, strict.forward)
    assert torch.equal(free.backward, strict.backward)


# what stays as it was


def test_arguments_are_never_written_to(attack, images, labels):
    found, rng = attacked(attack, seed=5), rng_of(5)
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.rng.keys, rng.keys)
    assert torch.equal(found.rng.rows, rng.rows)
    assert not found.images.requires_grad


def modes(network):
    return [module.training for module in network.modules()]


def flags(network):
    return [parameter.requires_grad for parameter in network.parameters()]


class State(NamedTuple):
    """All that an attack could change of a network; tensors as copies."""

    modes: list[bool]
    flags: list[bool]
    gradients: list[Tensor | None]
    gradient_values: list[Tensor | None]
    values: dict[str, Tensor]


def state_of(network):
    gradients = [parameter.grad for parameter in network.parameters()]
    values = copy.deepcopy((gradients, network.state_dict()))
    return State(modes(network), flags(network), gradients, *values)


@cache
def half_frozen(attack):
    """State before and after of a network in training mode with one of its BatchNorms and a layer frozen.

    It has gradients from a step before.
    """
    network = nn.Sequential(nn.BatchNorm2d(2), *seeded(make_network)).train()
    network[0].eval()
    network[1].weight.requires_grad_(False)
    network(middle_images(4, 2, 6, 6)).sum().backward()
    images = middle_images(16, 2, 6, 6, spread=0.5)
    before = state_of(network)
    attack(network, images, three_wrong(seeded(make_network).eval(), images))
    return before, state_of(network)


def test_modes_of_all_modules_are_restored_one_by_one(attack):
    before, after = half_frozen(attack)
    assert after.modes == before.modes


def test_parameters_train_or_rest_as_before(attack):
    before, after = half_frozen(attack)
    assert after.flags == before.flags


def test_gradients_of_parameters_are_untouched(attack):
    before, after = half_frozen(attack)
    assert any(gradient is not None for gradient in before.gradients)
    for index, gradient in enumerate(before.gradients):
        assert after.gradients[index] is gradient
        assert gradient is None or torch.equal(gradient, before.gradient_values[index])


def test_parameters_and_statistics_are_untouched(attack):
    before, after = half_frozen(attack)
    assert all(torch.equal(value, before.values[name]) for name, value in after.values.items())


def test_a_network_in_training_mode_is_attacked_in_evaluation_mode(attack, network, images, labels):
    training = copy.deepcopy(network).train()
    assert torch.equal(attack(training, images, labels), attacked(attack).adversarial)


class Broken(nn.Module):
    """Fails at its second call."""

    def __init__(self):
        super().__init__()
        self.network, self.calls = seeded(make_network), 0

    def forward(self, images):
        self.calls += 1
        if self.calls == 2:
            raise KeyError("broken")
        return self.network(images)


def test_a_failing_network_is_restored_too(images, labels):
    network = Broken().train()
    network.network[1].eval()
    before = modes(network), flags(network)
    with pytest.raises(KeyError, match="broken"):
        PGD(0.1)(network, images, labels)
    assert (modes(network), flags(network)) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_results_are_the_same_without_autograd(attack, network, images, labels, mode):
    expected = attacked(attack).adversarial
    with mode():
        arguments = images.clone(), labels.clone()
        adversarial = attack(network, *arguments, SampleRNG.default(arguments[0]))
    assert torch.equal(adversarial, expected)
    assert not adversarial.is_inference()


# what is refused


def refuses(attack, network, images, labels, message, rng=None):
    with pytest.raises(ValueError, match=message) as caught:
        attack(network, images, labels, rng)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attack", ONE_OF_EACH, ids=name_of)
@pytest.mark.parametrize("shift", [-0.6, 0.6])
def test_normalised_images_are_refused_with_the_remedy(attack, network, images, labels, shift):
    refuses(attack, network, images + shift, labels, r"\[0, 1\].* mean and std; .*first layer")


@pytest.mark.parametrize("attack", ONE_OF_EACH, ids=name_of)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(attack, network, images, labels, value):
    images[3, 0, 2, 2] = value
    refuses(attack, network, images, labels, "images contain NaN or infinite values")


@pytest.mark.parametrize("attack", ONE_OF_EACH, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float16])
def test_images_of_another_dtype_are_refused(attack, network, images, labels, dtype):
    refuses(attack, network, images.to(dtype), labels, "images must be float32 .* got torch")


@pytest.mark.parametrize("attack", ONE_OF_EACH, ids=name_of)
def test_images_without_a_batch_dimension_are_refused(attack, network, images, labels):
    refuses(attack, network, images[0], labels[:2], r"shape \(N, C, H, W\), got .* \(2, 6, 6\)")


@pytest.mark.parametrize("attack", ONE_OF_EACH, ids=name_of)
def test_labels_that_are_not_classes_are_refused(attack, network, images, labels):
    refuses(attack, network, images, labels.float(), "labels must be int64 .* got torch.float32")
    refuses(attack, network, images, labels[:5], r"labels must be int64 of shape \(16,\), got .* \(5,\)")
    refuses(attack, network, images, labels[:, None], r"labels must be int64 of shape \(16,\)")
    # -100 would be skipped by torch's cross-entropy and pass for a robust image
    refuses(attack, network, images, torch.full((16,), -100), "labels must be classes counted from 0, got -100")


@pytest.mark.parametrize("attack", [attack for attack in KNOWING if not attack.parts()], ids=name_of)
def test_labels_of_classes_that_the_network_lacks_are_refused(attack, network, images, labels):
    labels[5] = 4
    refuses(attack, network, images, labels, "labels go up to 4, but FullGradient knows classes 0 to 3: give the")


@pytest.mark.parametrize("attack", [attack for attack in ALL_SETTINGS if attack.targetable], ids=name_of)
def test_targets_that_are_the_true_class_are_refused(attack, network, images, labels):
    targets = (labels + 1) % 4
    targets[[2, 7, 8]] = labels[[2, 7, 8]]
    with pytest.raises(ValueError, match=r"^3 of 16 target_labels are the true class: give wrong ones$"):
        attack(network, images, labels, target_labels=targets)


@pytest.mark.parametrize("attack", ONE_OF_EACH, ids=name_of)
def test_random_numbers_of_other_images_are_refused(attack, network, images, labels):
    refuses(attack, network, images, labels, "got one for 15", SampleRNG.default(images[1:]))


class GivesNan(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :4] * float("nan")


class GivesNanGradients(nn.Module):
    """Finite logits, but the square root of zero has no slope."""

    def forward(self, images):
        return images.flatten(1)[:, :4] + (0 * images).flatten(1).sqrt()[:, :4]


@pytest.mark.parametrize("attack", KNOWING, ids=name_of)
def test_networks_that_give_nan_are_refused(attack, images, labels):
    with pytest.raises(RuntimeError, match="NaN logits"):
        attack(GivesNan(), images, labels)


@pytest.mark.parametrize("attack", WITH_GRADIENTS, ids=name_of)
def test_networks_with_nan_gradients_are_refused(attack, images, labels):
    with pytest.raises(RuntimeError, match="NaN logits or gradients"):
        attack(GivesNanGradients(), images, labels)


@pytest.mark.parametrize("attack", [attack for attack in ONE_OF_EACH if attack in KNOWING], ids=name_of)
def test_a_nan_of_one_attack_is_not_held_against_the_next(attack, network, images, labels):
    surrogate = FullGradient(network)
    surrogate.logits = lambda images, rng: GivesNan()(images).unsqueeze(0)
    with pytest.raises(RuntimeError, match="NaN"):
        attack(surrogate, images, labels)
    del surrogate.logits
    attack(surrogate, images, labels)


# special cases


def test_no_images_give_no_images(attack, network, images, labels):
    for surrogate in (FullGradient(network), Strict(network)):
        assert attack(surrogate, images[:0], labels[:0]).shape == (0, 2, 6, 6)


def test_one_image_is_a_batch(attack, network, images, labels):
    assert attack(network, images[:1], labels[:1]).shape == (1, 2, 6, 6)


class Flat(nn.Module):
    """The same logits everywhere, with a gradient of zero."""

    def forward(self, images):
        return images.flatten(1)[:, :4] * 0 + torch.tensor([0.0, 2.0, 1.0, 0.0])


def test_constant_logits_give_finite_pixels(attack, images):
    adversarial = attack(Flat(), images, torch.ones(16, dtype=torch.int64))
    assert adversarial.isfinite().all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert is_random(attack) or torch.equal(adversarial, images)


@pytest.mark.parametrize("attack", KNOWING, ids=name_of)
def test_two_classes_are_enough(attack, images):
    network = seeded(lambda: make_network(classes=2)).eval()
    labels = network(images).argmax(dim=1)
    assert not right(network, attack(network, images, labels), labels).all()


def test_black_and_white_images_are_attacked_inside_the_box(attack, network, images, labels):
    adversarial = attack(network, images.round(), labels)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_without_a_box_pixels_may_leave_zero_to_one(attack, network, images, labels):
    adversarial = dataclasses.replace(attack, box=False)(network, images.round(), labels)
    assert adversarial.min() < 0 or adversarial.max() > 1


# settings


def test_settings_cannot_change(attack):
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.box = False


def test_an_attack_prints_what_makes_it_again(attack):
    if type(attack) not in EXPORTED:
        pytest.skip("made shorter for these tests")
    assert eval(repr(attack), vars(attacks)) == attack


def test_attacks_with_equal_settings_are_equal(attack):
    assert copy.deepcopy(attack) == attack
    assert hash(copy.deepcopy(attack)) == hash(attack)


def needs_norm(exported, norm):
    if norm not in exported.norms:
        pytest.skip(f"{exported.__name__} does not know {norm}")


@pytest.mark.parametrize("exported", TAKING_EPS)
class TestEps:
    """The budget's range, for every attack that has one."""

    @pytest.mark.parametrize("norm", BUDGETS)
    def test_zero_returns_the_images(self, exported, network, images, labels, norm):
        needs_norm(exported, norm)
        adversarial = exported(0, norm)(network, images.clone().requires_grad_(), labels)
        assert torch.equal(adversarial, images)
        assert adversarial.data_ptr() != images.data_ptr()
        assert not adversarial.requires_grad

    def test_zero_still_checks_the_images(self, exported, network, images, labels):
        refuses(exported(0), network, images * 2, labels, "mean and std")

    def test_zero_in_inference_mode_gives_an_ordinary_tensor(self, exported, network, images, labels):
        with torch.inference_mode():
            assert not exported(0)(network, images.clone(), labels.clone()).is_inference()

    def test_text_is_read(self, exported):
        attack = exported("8/255")
        assert attack.eps == 8 / 255
        assert isinstance(attack.eps, Eps)
        assert attack == exported(8 / 255)

    @pytest.mark.parametrize("eps", [1.001, 8, "8"])
    def test_linf_above_one_asks_about_255(self, exported, eps):
        with pytest.raises(ValueError, match=r"eps for linf must lie in 0\.\.1, got .*0-255.*/255\?$"):
            exported(eps, "linf")

    @pytest.mark.parametrize("norm", BUDGETS)
    @pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf"), "-8/255", "inf"])
    def test_sizes_that_are_not_sizes_are_refused(self, exported, norm, eps):
        needs_norm(exported, norm)
        with pytest.raises(ValueError, match="eps must be a finite number of at least 0"):
            exported(eps, norm)

    def test_text_that_is_no_number_is_refused(self, exported):
        with pytest.raises(ValueError, match="eps must be a number such as"):
            exported("eight")

    @pytest.mark.parametrize(("norm", "largest"), [("l2", 72**0.5), ("l1", 72.0)])
    def test_beyond_the_diameter_of_the_box_is_refused(self, exported, network, images, labels, norm, largest):
        needs_norm(exported, norm)
        exported(largest, norm)(network, images, labels)
        refuses(exported(largest * 1.01, norm), network, images, labels, rf"eps for {norm} .* 0\.\.{largest:g}")

    def test_unknown_norms_are_refused(self, exported):
        with pytest.raises(ValueError, match=f"knows the norms {', '.join(exported.norms)}, got 'l3'"):
            exported(0.1, "l3")
