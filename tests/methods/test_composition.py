"""Combinations of methods: which can be installed together, and which are rejected."""

import pytest
import torch

from multitask_vl.config import load_config
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.adapter_io import load_adapter, save_adapter
from multitask_vl.models.build import build_model
from multitask_vl.registry import METHODS
from tests import tiny_run
from tests.tiny_models import FAMILIES, loss_of, perturb, tiny_batch, tiny_config

TOGETHER = [
    ("adapter", "prompt"),
    ("lora", "bitfit"),
    ("adapter", "lora"),
    ("vl_pet", "prompt"),
    ("compacter", "bitfit"),
    ("prompt", "lora", "hyperformer"),
]


def combined(*names: str, family: str = "bart"):
    """A configuration with several methods."""
    one, *others = (tiny_config(name, family=family) for name in names)
    return one.model_copy(update={"method": [*one.method, *(section for other in others for section in other.method)]})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", TOGETHER, ids="+".join)
def test_compatible_methods_combine(names, family, tmp_path):
    config = combined(*names, family=family)
    model = perturb(build_model(config).eval())
    components = {name for name in names if name != "bitfit"}
    assert set(model.parameter_breakdown()) == {"language_model", "visual_embedding"} | components
    loss_of(model, tiny_batch()).backward()
    for method in model.methods:
        trained = [*method.new_parameters, *method.trainable_base_parameters()]
        assert trained
        assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trained)
    save_adapter(model, tmp_path, config)
    other = build_model(config).eval()
    load_adapter(other, tmp_path)
    assert torch.equal(other(tiny_batch()), model(tiny_batch()))


def test_prompt_works_the_same_with_an_adapter():
    bare, alone = (build_model(config).eval() for config in (combined("frozen"), combined("prompt")))
    batch = tiny_batch()
    assert bare.encode(batch).hidden_states.shape[1] + 5 == alone.encode(batch).hidden_states.shape[1]
    model = build_model(combined("adapter", "prompt")).eval()
    assert model.encode(batch).hidden_states.shape == alone.encode(batch).hidden_states.shape


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("adapter", "compacter"), "adapter and compacter act at the same place"),
        (("adapter", "vl_pet", "modex"), "adapter and vl_pet and modex act at the same place"),
        (("hyperformer", "parallel_adapter"), "keep one of them"),
        (("full", "lora"), '"full" cannot be combined'),
        (("adapter", "frozen"), '"frozen" cannot be combined'),
        (("lora", "lora"), '"lora" is listed 2 times'),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_incompatible_methods_are_rejected(names, reason):
    with pytest.raises(InputError, match=reason):
        build_model(combined(*names))


def test_methods_without_bottleneck_reject_routing():
    without = [name for name in METHODS.names() if not METHODS.get(name).routable]
    assert {"prompt", "bitfit", "full", "frozen"} <= set(without)
    for name in without:
        with pytest.raises(InputError, match=f"method {name} has no bottleneck to route"):
            build_model(tiny_config(name, {"function": "mul"}))


def test_yaml_list_is_a_list_of_methods(tmp_path):
    path = tiny_run.write_config(tmp_path)
    config = load_config(path, ["method=[{name: adapter, rank: 4}, {name: prompt, num_tokens: 3}]"])
    assert [one.name for one in config.method] == ["adapter", "prompt"]
    config = load_config(path, ["method=[lora, {name: bitfit}]"])
    assert config.method == [METHODS.get(name).Config(name=name) for name in ("lora", "bitfit")]
    assert load_config(path, ["method=frozen"]).method[0].name == "frozen"
    for overrides in (["method=lora", "method.rank=2"], ["method.rank=2", "method=lora"]):
        (one,) = load_config(path, overrides).method
        assert (one.name, one.rank) == ("lora", 2)
    _, prompt = load_config(path, ["method=[adapter, prompt]", "method.1.num_tokens=7"]).method
    assert (prompt.name, prompt.num_tokens) == ("prompt", 7)
    own = tmp_path / "own.yaml"
    own.write_text(f"compose: [{path.name}]\nmethod: [adapter, promt]\n")
    with pytest.raises(InputError, match=r"own.yaml:2: method.1.name: got 'promt'; did you mean 'prompt'\?"):
        load_config(own)


def test_trainable_base_parameters_are_pretrained():
    model = build_model(combined("adapter", "bitfit"))
    trained = {id(parameter): name for name, parameter in model.trainable_parameters().items()}
    own = {trained[id(parameter)] for parameter in model.trainable_base_parameters()}
    assert own
    assert all("norm" in name or name.endswith("bias") for name in own)
    others = set(trained.values()) - own
    assert {name.split(".")[0] for name in others} == {"lm", "visual"}
    assert all(name.startswith("visual.") or ".down." in name or ".up." in name for name in others)
    full = build_model(tiny_config("full"))
    assert {id(p) for p in full.trainable_base_parameters()} == {id(p) for p in full.lm.parameters()}
