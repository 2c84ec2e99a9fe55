"""Routes in a folder of their own, and beside the adapters of others."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained_models import (
    MODELS,
    Written,
    converted,
    fixed,
    guide_of,
    logits_of,
    refused,
    require_close,
    text,
    traces,
    wrapped,
)

from pyro_meta import (
    CategoricalGuide,
    DirichletGuide,
    LoadCategorical,
    TokenTableGuide,
)
from pyro_meta.guides import of_own_token
from pyro_meta.pretrained import (
    convert,
    fingerprint,
    is_converted,
    load_routes,
    restore,
    save_routes,
)
from pyro_meta.pretrained.conversion import deployed

LOST = pytest.mark.filterwarnings("ignore:the weights of a converted model:UserWarning")


# -- routes in a folder --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "Qwen3 with sliding layers", "Gemma3", "GPT-2"])
@pytest.mark.parametrize(
    ("kind", "prior", "groups"),
    [
        (CategoricalGuide, LoadCategorical, "kv"),
        (DirichletGuide, None, "kv"),
        (TokenTableGuide, None, 1),
    ],
)
def test_saved_routes_come_back(
    name: str, kind: Any, prior: Any, groups: Any, tmp_path: Path
) -> None:
    made, tokens = MODELS[name](), text()
    more = {} if kind is TokenTableGuide else {"hidden": 7}
    guide = guide_of(wrapped(made, groups=groups), kind, prior, **more)
    guide.model.execution.price.fill_(0.3)
    routed = convert(made, guide)
    wanted = logits_of(routed, tokens)
    assert save_routes(routed, tmp_path / "deep" / "routes") == tmp_path / "deep" / "routes"
    again = load_routes(MODELS[name](), tmp_path / "deep" / "routes")
    assert is_converted(again) and torch.equal(logits_of(again, tokens), wanted)
    assert not torch.equal(logits_of(restore(again), tokens), wanted)
    ours, theirs = guide.state_dict(), deployed(load_routes(again, tmp_path / "deep/routes")).guide
    assert all(torch.equal(x, ours[key]) for key, x in theirs.state_dict().items())
    files = list((tmp_path / "deep" / "routes").iterdir())
    assert {one.name for one in files} == {"routes.json", "routes.safetensors"}
    weights = sum(x.numel() * x.element_size() for x in ours.values())
    assert sum(one.stat().st_size for one in files) < weights + 6000
    save_routes(again, tmp_path / "deep" / "routes")  # over those that are there
    load_routes(MODELS[name](), tmp_path / "deep" / "routes", checks=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    routed = converted(MODELS["Llama"]())
    routed.config._name_or_path = "somebody/some-model"
    return save_routes(routed, tmp_path / "routes")


def test_routes_of_another_model_are_refused(saved: Path) -> None:
    other = MODELS["Llama"]()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 4] += 0.5
    words = ("somebody/some-model", "LlamaForCausalLM", "other weights")
    refused(lambda: load_routes(other, saved), *words)
    refused(lambda: load_routes(MODELS["GPT-2"](), saved), *words)
    assert not traces(other)


def test_weights_are_known_in_any_precision(saved: Path) -> None:
    made = MODELS["Llama"]()
    known = fingerprint(made)
    for dtype in (torch.float64, torch.bfloat16):
        assert fingerprint(MODELS["Llama"]().to(dtype)) == known
    with pytest.warns(UserWarning, match="trained in float32, and the model is in bfloat16"):
        load_routes(made.to(torch.bfloat16), saved)


@pytest.mark.parametrize("trained", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("found", [torch.float32, torch.bfloat16, torch.float64])
def test_routes_know_the_precision_that_they_were_trained_in(
    tmp_path: Path, trained: torch.dtype, found: torch.dtype
) -> None:
    """In another one the text is another, and a line says so; in theirs nothing is said."""
    saved = save_routes(converted(MODELS["Llama"]().to(trained)), tmp_path / "routes")
    name = str(trained).removeprefix("torch.")
    assert json.loads((saved / "routes.json").read_text())["model"]["trained_in"] == name
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        again = load_routes(MODELS["Llama"]().to(found), saved)
    said = [str(one.message) for one in told]
    assert deployed(again).network.trained_in == trained
    assert len(said) == (found != trained)
    assert all(f"trained in {name}" in one and f"hf_model.to({trained})" in one for one in said)
    load_routes(restore(again).to(trained), saved)  # as it says


@pytest.mark.xfail(strict=True, reason="weights are rounded to bfloat16 from what float16 leaves")
def test_weights_are_known_in_half_precision() -> None:
    made = MODELS["Llama"]()
    assert fingerprint(made.to(torch.float16)) == fingerprint(MODELS["Llama"]())


def rewritten(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        found = json.loads((folder / "routes.json").read_text())
        changed = change(found)
        (folder / "routes.json").write_text(json.dumps(found if changed is None else changed))

    return rewrite


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no description": lambda folder: (folder / "routes.json").unlink(),
    "no weights": lambda folder: (folder / "routes.safetensors").unlink(),
    "half a description": cut("routes.json", 100),
    "an empty description": cut("routes.json", 0),
    "half the weights": cut("routes.safetensors", 200),
    "no byte of weights": cut("routes.safetensors", 0),
    "no text": lambda folder: (folder / "routes.json").write_bytes(b"\xff\xfe\x00"),
    "a list": rewritten(lambda found: [found]),
    "a number": rewritten(lambda found: 3),
    "nothing in it": rewritten(lambda found: {}),
    "no model": rewritten(lambda found: found.pop("model") and None),
    "no hash": rewritten(lambda found: found["model"].pop("sha256") and None),
    "no network": rewritten(lambda found: found.pop("network") and None),
    "no guide": rewritten(lambda found: found.pop("guide") and None),
    "a guide without arguments": rewritten(lambda found: found["guide"].pop("arguments") and None),
    "an unknown argument": rewritten(lambda found: found["guide"]["arguments"].update(width=3)),
    "an unknown option": rewritten(lambda found: found["network"].update(width=3)),
    "an option out of range": rewritten(lambda found: found["network"].update(window=0)),
    "an option of another kind": rewritten(lambda found: found["network"].update(window="wide")),
    "another shape": rewritten(lambda found: found["guide"]["arguments"].update(hidden=9)),
    "another guide": rewritten(lambda found: found["guide"].update({"class": "pyro_meta.Shape"})),
    "no guide of ours": rewritten(lambda found: found["guide"].update({"class": "pyro_meta.No"})),
    "a plain name": rewritten(lambda found: found["guide"].update({"class": "NoGuide"})),
    "a prior as a guide": rewritten(
        lambda found: found["guide"].update({"class": "pyro_meta.CostCategorical"})
    ),
    "a later format": rewritten(lambda found: found.update(format=2)),
    "a folder for weights": lambda folder: (
        (folder / "routes.safetensors").unlink(),
        (folder / "routes.safetensors").mkdir(),
    ),
    "a file for a folder": lambda folder: (
        [one.unlink() for one in folder.iterdir()],
        folder.rmdir(),
        folder.write_text("routes"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_routes_are_told_in_one_line(damage: str, saved: Path) -> None:
    DAMAGE[damage](saved)
    made = MODELS["Llama"]()
    refused(lambda: load_routes(made, saved), str(saved))
    assert not is_converted(made) and not traces(made)


def test_a_guide_of_ones_own_needs_trust(tmp_path: Path) -> None:
    made = MODELS["Llama"]()
    guide = guide_of(wrapped(made), Own)
    routed = convert(made, guide)
    wanted = logits_of(routed, text())
    save_routes(routed, tmp_path)
    refused(lambda: load_routes(MODELS["Llama"](), tmp_path), f"{__name__}.Own", "say trust=True")
    again = load_routes(MODELS["Llama"](), tmp_path, trust=True)
    assert torch.equal(logits_of(again, text()), wanted)
    assert type(deployed(again).guide) is Own


def test_mechanisms_of_a_folder_are_not_imported_without_trust(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_mechanism.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    names = ["full", "planted_mechanism.Mine"]
    rewritten(lambda found: found["network"].update(mechanisms=names))(saved)
    refused(lambda: load_routes(MODELS["Llama"](), saved), "planted_mechanism.Mine", "trust")


class Own(CategoricalGuide):
    """A user's own."""

    @of_own_token
    def posterior(self, layer: int, features: Any) -> Any:
        return super().posterior(layer, features._replace(normed=features.state))


def test_arguments_that_cannot_be_written_down_are_told(tmp_path: Path) -> None:
    made = MODELS["Llama"]()
    guide = guide_of(wrapped(made), Own)
    guide.arguments["hidden"] = torch.ones(3)
    refused(lambda: save_routes(convert(made, guide), tmp_path / "new"), "cannot be written down")
    assert not (tmp_path / "new").exists()


# -- beside others -------------------------------------------------------------------------------


@LOST
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("is_converted_first", [True, False])
def test_lora_beside_a_routed_model(is_converted_first: bool, tmp_path: Path) -> None:
    """Adapters on the projections are trained and saved; routes stay as they are."""
    peft = pytest.importorskip("peft")
    made, tokens = MODELS["Llama"](), text()
    network = wrapped(made)
    guide = guide_of(network)
    if is_converted_first:
        convert(made, guide)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(made, config)
    if not is_converted_first:
        with torch.no_grad():
            alone = wrapped(MODELS["Llama"]())
            route = fixed(network, False)  # adapters begin as zero
            require_close(network(tokens, route), alone(tokens, route))
        convert(made, guide)
    before = logits_of(adapted, tokens)
    assert torch.equal(before, logits_of(made, tokens))
    optimiser = torch.optim.Adam([x for x in adapted.parameters() if x.requires_grad], 0.1)
    for _ in range(2):
        loss = adapted.train()(input_ids=tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = logits_of(adapted.eval(), tokens)
    assert not torch.equal(after, before) and bool(after.isfinite().all())
    slow = Written(adapted, tokens, use_cache=False)
    assert Written(adapted, tokens).tokens.tolist() == slow.tokens.tolist()
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()
    require_close(logits_of(merged, tokens), after, 1e-4)
    assert not traces(restore(merged))
