"""Cases of the generic method tests: combinations of backbone family, method, settings and routing.

The axes are independent by construction: a method passes its down-projection to `Context.bottleneck`, which applies the
routing function; neither knows the other, and a family only supplies sites. So the cases cover all pairs instead of the
full product: every method with every sharing and variant on every family, with and without routing, and every routing
function, source and control on every family. New methods and functions get cases from the registries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from multitask_vl.registry import METHODS, ROUTING
from tests.tiny_models import FAMILIES, tiny_model

Settings = tuple[tuple[str, Any], ...]


class Case(NamedTuple):
    """A backbone family, a method with its settings, and routing."""

    family: str
    method: str
    settings: Settings
    routing: Settings

    @property
    def label(self) -> str:
        extras = [f"{key}={value}" for key, value in self.routing if key != "function"]
        parts = [self.method, *(str(value) for _, value in self.settings), dict(self.routing)["function"], *extras]
        return "-".join(parts if self.family == "bart" else [self.family, *parts])

    @property
    def is_routed(self) -> bool:
        return dict(self.routing)["function"] != "none"

    def arguments(self, **settings: Any) -> dict[str, Any]:
        """Arguments of `tiny_config` and `tiny_model`, as JSON values."""
        settings = dict(self.settings) | settings
        return {"method": self.method, "routing": dict(self.routing), "family": self.family, **settings}

    def model(self, **settings: Any):
        return tiny_model(**self.arguments(**settings))


ROUTABLE = [name for name in METHODS.names() if METHODS.get(name).routable]
MM1 = (("function", "mm1"),)


def _sharings(name: str) -> list[Settings]:
    field = METHODS.get(name).Config.model_fields.get("sharing")
    return [(("sharing", value),) for value in get_args(field.annotation)] if field else [()]


def _method_cases(name: str) -> Iterator[Case]:
    """All sharings and variants on all families, with and without routing or, beyond the first sharing, in turn."""
    unrouted = (("function", "none"),)
    for f, family in enumerate(FAMILIES):
        for i, sharing in enumerate(_sharings(name)):
            if i == 0 or name not in ROUTABLE or (f + i) % 2 == 0:
                yield Case(family, name, sharing, unrouted)
            if name in ROUTABLE and (i == 0 or (f + i) % 2 == 1):
                yield Case(family, name, sharing, MM1)
        for i, variant in enumerate(METHODS.get(name).test_variants):
            settings = dict(variant)
            function = "mm1" if name in ROUTABLE and (f + i) % 2 == 0 else "none"
            routing = (
                {"function": "none"} | settings.pop("routing") if "routing" in settings else {"function": function}
            )
            yield Case(family, name, tuple(settings.items()), tuple(routing.items()))
        if name in ROUTABLE:
            yield Case(family, name, _sharings(name)[0], (*MM1, ("source", "visual")))


def _routing_cases() -> Iterator[Case]:
    """All other functions, the noise control and another pooling, each with two methods per family in rotation."""
    functions = [(("function", name),) for name in ROUTING.names() if name not in ("none", "mm1")]
    routings = [*functions, (*MM1, ("control", "noise")), (*MM1, ("tokens", "visual"))]
    for i, routing in enumerate(routings):
        for f, family in enumerate(FAMILIES):
            for shift in (2 * f, 2 * f + len(ROUTABLE) // 2):
                name = ROUTABLE[(i + shift) % len(ROUTABLE)]
                yield Case(family, name, _sharings(name)[0], routing)


METHOD_CASES = [case for name in METHODS.names() for case in _method_cases(name)]
CASES = [*METHOD_CASES, *_routing_cases()]


def one_per_settings(cases: list[Case]) -> list[Case]:
    """One case for each family, method and settings, with mm1 where there is one."""
    found: dict[tuple, Case] = {}
    for case in cases:
        key = (case.family, case.method, case.settings)
        if key not in found or case.routing == MM1:
            found[key] = case
    return list(found.values())


def one_per_method(cases: list[Case]) -> list[Case]:
    """The first case of each family and method."""
    return list({(case.family, case.method): case for case in reversed(cases)}.values())


ALL_SETTINGS = one_per_settings(CASES)
"""Every method with all settings on every family."""
ALL_METHODS = one_per_method(ALL_SETTINGS)
"""Every method on every family."""
BART_SETTINGS = [case for case in ALL_SETTINGS if case.family == "bart" or case in ALL_METHODS]
"""Every method with all settings on BART, and once on the other families."""
