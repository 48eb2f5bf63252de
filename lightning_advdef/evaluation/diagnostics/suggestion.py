"""The scenario to run next, as lines that can be pasted under ``evaluation.scenarios``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import yaml

from lightning_advdef import attacks
from lightning_advdef.attacks import Attack, FixedBudgetAttack, SurrogateFactory
from lightning_advdef.checkpoints import plain
from lightning_advdef.evaluation.diagnostics.evidence import Evidence
from lightning_advdef.evaluation.scenario import Scenario, expand
from lightning_advdef.types import Eps, Norm

_DRAWS = 20  # EOT's default
_LONGER = 5
_MODULE = f"{attacks.__name__}."


def entry(name: str, attack: Mapping[str, Any], surrogate: Any = None, **settings: Any) -> str:
    """YAML of one scenario, a line for each of its settings."""
    content = {"name": name, "attack": attack} | ({} if surrogate is None else {"surrogate": surrogate}) | settings
    lines = [f"{key}: {_in_one_line(value)}" for key, value in content.items()]
    return "".join(f"{'  ' if number else '- '}{line}\n" for number, line in enumerate(lines))


def _in_one_line(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").rstrip()


def named(check: str, scenario: Scenario | None = None) -> str:
    """A name for what is to be run next, which tells whether it was run."""
    about = "" if scenario is None else "_" + scenario.name.replace("/", "_")
    return f"next_{check}{about}"


def name_of(text: str) -> str:
    """The name in the lines of an :func:`entry`; empty where there are none."""
    return text.partition("\n")[0].removeprefix("- name: ")


def was_run(evidence: Evidence, text: str) -> bool:
    """Whether the attack of an :func:`entry` ran in its budget through its surrogates, under whatever name."""
    if not text:
        return False
    (asked,) = yaml.safe_load(text)
    surrogate = asked.get("surrogate", "FullGradient")
    factory = surrogate if surrogate == "adaptive" else _factory(surrogate)
    if factory is None:
        return False
    defense = evidence.judge.defense
    rows = expand([Scenario(asked["name"], attacks.Noise(Eps(0)), factory, asked.get("samples", 1))], defense)
    wanted = [(_settled(asked["attack"]), row.bind(defense).describe()) for row in rows]
    run = [(_settled(plain(row.attack)), evidence.surrogate(row).describe()) for row in evidence.judge.scenarios]
    return all(each in run for each in wanted)


def _factory(described: Any) -> SurrogateFactory | None:
    """Makes the surrogate of a description; None for a class of somebody else, or one that holds other objects."""
    described = {"class_path": described} if isinstance(described, str) else described
    kind = getattr(attacks, described["class_path"], None)
    settings = {key: _factory(value) if key == "of" else value for key, value in described.get("init_args", {}).items()}
    holds_objects = any(isinstance(value, Mapping) for value in settings.values())
    return None if kind is None or holds_objects or settings.get("of", kind) is None else partial(kind, **settings)


def _settled(described: Any) -> Any:
    """A description in one form: a class with those of its settings that differ from the defaults."""
    if not isinstance(described, Mapping) or "class_path" not in described:
        return described
    name = _short(described)["class_path"]
    known = getattr(attacks, name, None)
    defaults = {} if known is None else inspect.signature(known).parameters
    usual = {key: _settled(plain(argument.default)) for key, argument in defaults.items()}
    given = {key: _settled(value) for key, value in described.get("init_args", {}).items()}
    return name, {key: value for key, value in given.items() if key not in usual or usual[key] != value}


def knowing(evidence: Evidence, check: str, scenario: Scenario | None = None) -> str:
    """An attack that fits the defense better than what was run: around its test-time part, or by scores alone."""
    draws = {"samples": _DRAWS} if evidence.stochastic else {}
    name, budget = named(check, scenario), budget_of(evidence, scenario)
    if evidence.named_surrogates:
        return entry(name, _gradient_attack(budget), "adaptive", **draws)
    if evidence.has_test_time_part:
        averaged = {"class_path": "EOT", "init_args": {"of": "BPDA", **draws}}
        return entry(name, _gradient_attack(budget), averaged if draws else "BPDA")
    if draws:
        return averaged_over_draws(evidence, check, scenario)
    return by_scores(evidence, check, scenario) or entry(name, _gradient_attack(budget))


def averaged_over_draws(evidence: Evidence, check: str, scenario: Scenario | None = None) -> str:
    """A gradient attack that averages over the draws of a random defense."""
    if evidence.named_surrogates:
        return knowing(evidence, check, scenario)
    averaged = {"class_path": "EOT", "init_args": {"samples": _DRAWS}}
    return entry(named(check, scenario), _gradient_attack(budget_of(evidence, scenario)), averaged)


def by_scores(evidence: Evidence, check: str, scenario: Scenario | None = None) -> str:
    """An attack that asks for scores alone, which no missing gradient misleads; nothing in l1, where there is none."""
    norm, eps = budget_of(evidence, scenario)
    return "" if norm == "l1" else entry(named(check, scenario), _settings("Square", norm, eps, queries=5000))


def by_margin(evidence: Evidence, check: str, scenario: Scenario) -> str:
    """A gradient attack on the margin, whose gradient does not vanish where a network is too sure."""
    return entry(named(check, scenario), _gradient_attack(budget_of(evidence, scenario)))


def noise(evidence: Evidence, check: str) -> str:
    """The control experiment: noise of the budget, the worst of many draws."""
    norm, eps = budget_of(evidence, None)
    return entry(named(check), _settings("Noise", norm, eps, kind="sign", draws=100))


def gradient_attack(evidence: Evidence, check: str) -> str:
    """An iterative white-box attack."""
    return entry(named(check), _gradient_attack(budget_of(evidence, None)))


def longer(check: str, scenario: Scenario) -> str:
    """The same attack with more steps; nothing where it has none, or where a function makes its surrogate."""
    attack: Any = scenario.attack
    if not hasattr(attack, "steps") or not _has_description(scenario.surrogate):
        return ""
    described = describe(replace(attack, steps=_LONGER * attack.steps))
    return entry(named(check, scenario), described, _short(plain(scenario.surrogate)))


def _has_description(value: Any) -> bool:
    """Whether ``plain`` leaves nothing out."""
    settings = value.keywords.values() if isinstance(value, partial) else ()
    return bool(plain([value])) and all(map(_has_description, settings))


def budget_of(evidence: Evidence, scenario: Scenario | None) -> tuple[Norm, float]:
    """Norm and size: of the scenario, else of the first that has one, else 8/255."""
    attack = None if scenario is None else scenario.attack
    if isinstance(attack, FixedBudgetAttack) and attack.eps > 0:
        return attack.norm, float(attack.eps)
    return next(iter(evidence.budgets), ("linf", 8 / 255))


def describe(attack: Attack) -> dict[str, Any]:
    """Class and the settings that differ from its defaults."""
    different = [field.name for field in fields(attack) if field.init and getattr(attack, field.name) != field.default]
    content = plain(attack)
    described: dict[str, Any] = _short(
        {**content, "init_args": {name: content["init_args"][name] for name in different}}
    )
    return described


def _gradient_attack(budget: tuple[Norm, float]) -> dict[str, Any]:
    norm, eps = budget
    if norm == "l1":
        return _settings("PGD", norm, eps, steps=100, loss="margin", restarts=5)
    return _settings("APGD", norm, eps, loss="margin", restarts=5)


def _settings(attack: str, norm: Norm, eps: float, **others: Any) -> dict[str, Any]:
    return {"class_path": attack, "init_args": {"eps": eps, "norm": norm, **others}}


def _short(described: Any) -> Any:
    """Descriptions with the short names of classes that have one."""
    if isinstance(described, list):
        return [_short(item) for item in described]
    if not isinstance(described, Mapping):
        return described
    content = {key: _short(value) for key, value in described.items()}
    if "class_path" in content:
        short = content["class_path"].rpartition(".")[2]
        known = content["class_path"].startswith(_MODULE) and hasattr(attacks, short)
        content["class_path"] = short if known else content["class_path"]
    return content
