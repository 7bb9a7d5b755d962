"""Which combinations of method, sharing, routing and backbone do the generic tests try? All that there are."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

from multitask_vl.registry import METHODS, ROUTING
from tests.tiny_models import FAMILIES, tiny_model


class Case(NamedTuple):
    """A backbone, a method with its settings, and routing."""

    family: str
    method: str
    settings: tuple[tuple[str, Any], ...]
    routing: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        words = [self.method, *(str(value) for _, value in self.settings + self.routing)]
        return "-".join(words if self.family == "bart" else [self.family, *words])

    def arguments(self, **settings: Any) -> dict[str, Any]:
        """Of `tiny_config` and `tiny_model`; JSON-able."""
        own = dict(self.settings) | settings
        return {"method": self.method, "routing": dict(self.routing), "family": self.family, **own}

    def model(self, **settings: Any):
        return tiny_model(**self.arguments(**settings))


def _cases(family: str, name: str) -> list[Case]:
    method = METHODS.get(name)
    field = method.Config.model_fields.get("sharing")
    sharings = [(("sharing", value),) for value in get_args(field.annotation)] if field else [()]
    few = ["none", "mm1"] if method.routable else ["none"]
    functions = ROUTING.names() if method.routable and family == "bart" else few
    cases = []
    for i, sharing in enumerate(sharings):
        # every function with the first two ways of sharing; what is half shared is those two mixed
        cases += [Case(family, name, sharing, (("function", f),)) for f in (functions if i < 2 else few)]
    for variant in method.variants:
        settings, routings = dict(variant), [{"function": f} for f in few]
        if "routing" in settings:
            routings = [{"function": "none"} | settings.pop("routing")]
        cases += [Case(family, name, tuple(settings.items()), tuple(routing.items())) for routing in routings]
    if method.routable:
        early = [("source", "visual_pooled")], [("control", "noise")], [("pool", "visual"), ("control", "none")]
        cases += [Case(family, name, sharings[0], (("function", "mm1"), *more)) for more in early]
    return cases


CASES = [case for family in FAMILIES for name in METHODS.names() for case in _cases(family, name)]
