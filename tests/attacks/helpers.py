"""Networks with known answers, and the settings under which every exported attack is tested."""

import inspect
from dataclasses import replace

import torch
from torch import nn

import lightning_advdef.attacks as attacks
from lightning_advdef.attacks import (
    APGD,
    BIM,
    DDN,
    FAB,
    FGM,
    FGSM,
    FMN,
    MIM,
    PGD,
    Attack,
    AutoAttack,
    Bisection,
    CarliniWagnerL2,
    CarliniWagnerLinf,
    Cascade,
    DeepFool,
    FullGradient,
    GeneratorAttack,
    LowFrequency,
    Noise,
    RandomStartFGSM,
    Square,
    Targeted,
    TargetedAPGD,
    TargetedFAB,
)


class ShortAutoAttack(AutoAttack):
    """AutoAttack with few steps, targets and queries."""

    def parts(self):
        short = {"steps": 4, "queries": 20, "targets": 2, "restarts": 2}
        parts = {}
        for name, part in super().parts().items():
            less = {key: min(value, getattr(part, key)) for key, value in short.items() if hasattr(part, key)}
            parts[name] = replace(part, **less)
        return parts


EXPORTED = [
    attack
    for attack in (getattr(attacks, name) for name in attacks.__all__)
    if inspect.isclass(attack) and issubclass(attack, Attack) and not inspect.isabstract(attack)
]
BUDGETS = {"linf": 0.05, "l2": 0.3, "l1": 1.0}
NOISES = [("uniform", 1), ("sign", 1), ("gaussian", 1), ("sign", 4)]
SETTINGS = {
    APGD: [APGD(eps, norm, steps=8, restarts=2) for norm, eps in BUDGETS.items() if norm in APGD.norms]
    + [APGD(0.05, steps=8, loss="dlr", start=BIM(0.03, steps=2))],
    TargetedAPGD: [TargetedAPGD(eps, norm, steps=6) for norm, eps in BUDGETS.items() if norm in TargetedAPGD.norms],
    FAB: [FAB(norm, steps=5) for norm in FAB.norms] + [FAB(steps=3, restarts=2, enough=0.03)],
    TargetedFAB: [TargetedFAB(norm, steps=4) for norm in FAB.norms]
    + [TargetedFAB("l2", steps=4, targets=2, enough=0.3)],
    FGSM: [FGSM(eps, norm) for norm, eps in BUDGETS.items()],
    FGM: [FGM(eps, norm) for norm, eps in BUDGETS.items()],
    PGD: [PGD(eps, norm, steps=6, restarts=2) for norm, eps in BUDGETS.items()]
    + [PGD("8/255", steps=6, step_size="2/255", loss="margin")]
    + [PGD(0.05, steps=4, loss="kl_divergence", start=Noise(0.01, "l2", "gaussian"))],
    RandomStartFGSM: [RandomStartFGSM(eps, norm) for norm, eps in BUDGETS.items()]
    + [RandomStartFGSM(0.05, step_size=0.02)],
    BIM: [BIM(eps, norm, steps=5) for norm, eps in BUDGETS.items()],
    MIM: [MIM(eps, norm, steps=5) for norm, eps in BUDGETS.items()],
    Square: [Square(eps, norm, queries=30, restarts=2) for norm, eps in BUDGETS.items() if norm in Square.norms]
    + [Square(0.05, queries=70, p_init=0.3, loss="cross_entropy")],
    Noise: [Noise(3 * eps, norm, kind, draws) for norm, eps in BUDGETS.items() for kind, draws in NOISES],
    DDN: [DDN(steps=12), DDN(steps=12, gamma=0.2, levels=256)],
    FMN: [FMN(steps=12, norm=norm) for norm in FMN.norms],
    CarliniWagnerL2: [
        CarliniWagnerL2(steps=20, search_steps=2, learning_rate=0.05, initial_const=0.1),
        CarliniWagnerL2(
            steps=12, search_steps=2, learning_rate=0.05, initial_const=10.0, confidence=0.5, abort_early=False
        ),
    ],
    CarliniWagnerLinf: [CarliniWagnerLinf(0.05, steps=6, learning_rate=0.2), CarliniWagnerLinf(0.1, confidence=1.0)],
    Targeted: [Targeted(PGD(3 * eps, norm, steps=6)) for norm, eps in BUDGETS.items()]
    + [Targeted(MIM(0.2, steps=6), "runner_up"), Targeted(BIM(0.3, steps=6), "least_likely")],
    DeepFool: [DeepFool(steps=8), DeepFool(steps=8, candidates=2), DeepFool(steps=8, candidates=None)],
    LowFrequency: [LowFrequency(PGD(3 * eps, norm, steps=6), frequencies=0.5) for norm, eps in BUDGETS.items()]
    + [LowFrequency(BIM(0.2, steps=4), 0.3), LowFrequency(Square(0.1, queries=30), 0.5)],
    Bisection: [Bisection(PGD(4 * eps, norm, steps=6), rounds=3) for norm, eps in BUDGETS.items()]
    + [Bisection(BIM(0.2, steps=4), rounds=3)],
    Cascade: [
        Cascade(attacks={"fgm": FGM(eps, norm), "pgd": PGD(eps, norm, steps=4), "bim": BIM(eps, norm, steps=3)})
        for norm, eps in BUDGETS.items()
    ]
    + [Cascade(attacks={"square": Square(0.05, queries=20), "fab": FAB(steps=4)}, cascade=False)],
    GeneratorAttack: [],  # fits one kind of images alone: test_generator_attack.py
    AutoAttack: [
        ShortAutoAttack(0.05),
        ShortAutoAttack(0.3, "l2", version="plus"),
        ShortAutoAttack(0.05, version="rand"),
    ],
}
ALL_SETTINGS = [attack for settings in SETTINGS.values() for attack in settings]
ONE_OF_EACH = [settings[0] for settings in SETTINGS.values() if settings]
KNOWING = [attack for attack in ALL_SETTINGS if attack.needs != "nothing"]
WITH_GRADIENTS = [attack for attack in ALL_SETTINGS if attack.needs == "gradients"]


def name_of(attack):
    norm = getattr(attack, "norm", None) or attack.size_norm
    return f"{type(attack).__name__}-{norm}"


def is_random(attack):
    inner = getattr(attack, "attack", attack)
    if isinstance(inner, Noise | RandomStartFGSM | Square):
        return True
    return getattr(inner, "random_start", isinstance(inner, APGD) and inner.start is None)


class Linear(nn.Module):
    """Logits ``weight @ pixels + bias`` in the precision of the images."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


def random_linear(classes, pixels, seed=0):
    """A linear classifier whose decision boundaries pass near the middle of the pixel box."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, pixels, generator=generator)
    return Linear(weight, -weight.sum(dim=1) / 2 + 0.1 * torch.randn(classes, generator=generator))


def middle_images(count, *shape, seed=0, spread=0.2):
    """Images around grey, so that small budgets do not reach the ends of the pixel range."""
    noise = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    return 0.5 + spread * (2 * noise - 1)


def seeded(make, seed=0):
    """A network made under a seed, without touching torch's own generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def make_network(classes=4):
    """A small convolutional network with BatchNorm and dropout, for images of 2x6x6 pixels."""
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(24, classes),
    )
    with torch.no_grad():
        network[1].running_mean.normal_(std=0.1)
        network[1].running_var.uniform_(0.5, 1.5)
        network[-1].weight.mul_(8)
    return network


def three_wrong(network, images):
    """The network's own predictions, except that the last three images are misclassified."""
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    labels[-3:] = (labels[-3:] + 1) % 4
    return labels


def accuracy(network, images, labels):
    with torch.no_grad():
        return (network(images).argmax(dim=1) == labels).float().mean().item()


def right(network, images, labels):
    with torch.no_grad():
        return network(images).argmax(dim=1) == labels


class Strict(FullGradient):
    """The full gradient as strict mode runs it: no image leaves the batch."""

    def __init__(self, defense):
        super().__init__(defense)
        self.fixed_shape = True


class Recording(FullGradient):
    """Keeps all images that it is asked about; ``exact`` as told."""

    def __init__(self, defense, exact=True):
        super().__init__(defense)
        self.seen, self.claim = [], exact

    @property
    def exact(self):
        return self.claim

    def logits(self, images, rng):
        self.seen.append(images.detach().clone())
        return super().logits(images, rng)


class FooledInBfloat16(nn.Module):
    """Class 0 for certain in float32; under autocast to bfloat16, which a search may use, always class 1."""

    def forward(self, images):
        low = torch.is_autocast_enabled("cpu")
        return torch.tensor([0.0, 1.0] if low else [1.0, 0.0]) + 0 * images.flatten(1)[:, :2]


class NeverFooled(nn.Module):
    """Logits that depend on the image, with class 0 always the highest."""

    def __init__(self, classes, pixels=72):
        super().__init__()
        self.wrong = random_linear(classes - 1, pixels)

    def forward(self, images):
        return torch.cat([2 + images.flatten(1)[:, :1], self.wrong(images).sigmoid()], dim=1)
