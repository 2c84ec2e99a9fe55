"""Blocks: what they compute, written out, and that a network of any of them trains and is kept."""

import contextlib
from pathlib import Path

import flawed
import pytest
import torch
import torch.nn.functional as F
import yaml
from commands import MOMENT
from safetensors.torch import load_file
from torch import Tensor

from pyro_meta import Decision, Features, Shape, Transformer, UsageError, pinned
from pyro_meta.attention.rotary import rotation
from pyro_meta.contracts.admission import require_sound_network
from pyro_meta.generate import main as generate
from pyro_meta.network.blocks import (
    BLOCKS,
    Block,
    MomentumBlock,
    PlainMomentumBlock,
    Stream,
    Surroundings,
    find_block,
)
from pyro_meta.network.macs import counted, dense_macs, full_attention_macs
from pyro_meta.train import main as train
from pyro_meta.training.config import read_options, train_words
from pyro_meta.training.run import Run

SHAPE = Shape(vocabulary=11, context=16, width=16, layers=3, heads=4, window=3)
NORMED, PLAIN = "momentum", "plain_momentum"
OFF = -float("inf")  # the logit of 0


def tokens(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(3))


def soft(layer: int, features: Features) -> Decision:
    return Decision(features.normed[..., :3].softmax(-1))


def shaken(block: str, mechanisms: tuple[str, ...] = ("full", "window", "linear")) -> Transformer:
    """A network whose parameters are as after training."""
    torch.manual_seed(4)
    network = Transformer(SHAPE, mechanisms, block)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * norm.weight + norm.bias


def surroundings(length: int) -> Surroundings:
    return Surroundings(*rotation(torch.arange(length), SHAPE.head_width), None)


def written_out(network: Transformer, block: str, tokens: Tensor) -> Tensor:
    """The equations of an accelerated network, line by line, on its parameters."""
    at = surroundings(tokens.shape[1])
    x = network.embedding.weight[tokens]
    v = torch.zeros_like(x)
    for b in network.blocks:
        one, two = b.attention_step, b.mlp_step
        mu1, beta1, gamma1 = one.logit_mu.sigmoid(), one.logit_beta.sigmoid(), one.log_gamma.exp()
        mu2, beta2, gamma2 = two.logit_mu.sigmoid(), two.logit_beta.sigmoid(), two.log_gamma.exp()
        z = layer_norm(x + mu1 * v, b.attention_norm)
        v = beta1 * v + gamma1 * b.attention(z, z[..., :3].softmax(-1), at).out
        v = layer_norm(v, one.norm) if block == NORMED else v
        x = x + v
        z = layer_norm(x + mu2 * v, b.mlp_norm)
        v = beta2 * v + gamma2 * (F.gelu(z @ b.mlp.expand.weight.T) @ b.mlp.project_out.weight.T)
        v = layer_norm(v, two.norm) if block == NORMED else v
        x = x + v
    return layer_norm(x, network.final_norm) @ network.readout.weight.T


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("block", [NORMED, PLAIN])
def test_an_accelerated_network_is_its_equations(block: str) -> None:
    network = shaken(block)
    ours, theirs = network(tokens(), soft), written_out(network, block, tokens())
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    parameters = list(network.parameters())
    weight = torch.randn_like(ours)
    ours_grad, theirs_grad = (
        torch.autograd.grad((out * weight).sum(), parameters, materialize_grads=True)
        for out in (ours, theirs)
    )
    for one, other in zip(ours_grad, theirs_grad, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_mu_beta_and_gamma_start_where_the_papers_have_them() -> None:
    for block in Transformer(SHAPE, block=NORMED).blocks:
        for step in (block.attention_step, block.mlp_step):
            assert step.logit_mu.sigmoid().item() == pytest.approx(0.9)
            assert step.logit_beta.sigmoid().item() == pytest.approx(0.9)
            assert step.log_gamma.exp().item() == 1


def without_momentum(network: Transformer) -> Transformer:
    """mu = beta = 0, exactly."""
    for block in network.blocks:
        for step in (block.attention_step, block.mlp_step):
            for logit in (step.logit_mu, step.logit_beta):
                torch.nn.init.constant_(logit, OFF)
    return network


def test_without_momentum_or_norm_it_is_the_ordinary_transformer() -> None:
    """Bit by bit, from the same weights; and so from the same seed."""
    plain = without_momentum(Transformer(SHAPE, block=PLAIN))
    residual = Transformer(SHAPE)
    unknown = plain.load_state_dict(residual.state_dict(), strict=False)
    assert not unknown.unexpected_keys
    assert all("_step." in name for name in unknown.missing_keys)
    for route in (soft, pinned(residual, "full")):
        assert torch.equal(plain(tokens(), route), residual(tokens(), route))
    torch.manual_seed(8)
    same = Transformer(SHAPE).state_dict()
    torch.manual_seed(8)
    for name, value in Transformer(SHAPE, block=PLAIN).state_dict().items():
        assert "_step." in name or torch.equal(value, same[name])


@pytest.mark.usefixtures("double")
def test_without_momentum_it_is_a_residual_network_of_normalised_branches() -> None:
    network = without_momentum(shaken(NORMED))
    at = surroundings(9)
    x = network.embedding.weight[tokens()]
    for b in network.blocks:
        z = layer_norm(x, b.attention_norm)
        attended = b.attention(z, z[..., :3].softmax(-1), at).out
        x = x + layer_norm(b.attention_step.log_gamma.exp() * attended, b.attention_step.norm)
        moved = b.mlp(layer_norm(x, b.mlp_norm))
        x = x + layer_norm(b.mlp_step.log_gamma.exp() * moved, b.mlp_step.norm)
    expected = layer_norm(x, network.final_norm) @ network.readout.weight.T
    torch.testing.assert_close(network(tokens(), soft), expected, rtol=1e-10, atol=1e-10)


def test_velocities_keep_their_scale_where_they_are_normalised() -> None:
    """A steady force moves the state 1 / sqrt(2 L) a half step; else ever faster, up to tenfold."""
    shape = Shape(vocabulary=11, width=16, layers=8, heads=4)
    speeds: dict[str, list[float]] = {}
    for kind in (NORMED, PLAIN):
        network = Transformer(shape, block=kind)
        block = network.layers[0]
        stream = block.begin(torch.randn(1, 5, 16))
        force = torch.randn(1, 5, 16)
        speeds[kind] = []
        for _ in range(30):
            stream = block.attention_step(stream, force)
            assert stream.velocity is not None
            speeds[kind].append(float(stream.velocity.detach().square().mean().sqrt()))
    assert speeds[NORMED] == pytest.approx([16**-0.5] * 30, rel=1e-3)
    force_rms = float(force.square().mean().sqrt())
    assert speeds[PLAIN][0] == pytest.approx(force_rms)
    assert speeds[PLAIN][-1] == pytest.approx((1 - 0.9**30) / 0.1 * force_rms, rel=1e-4)


@pytest.mark.usefixtures("double")
def test_the_router_sees_what_the_layer_attends_from() -> None:
    """z = LN(x + mu1 v), and the state x beside it."""
    network = shaken(NORMED)
    seen: list[Features] = []
    read: list[Tensor] = []
    for block in network.layers:
        block.attention.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))

    def route(layer: int, features: Features) -> Decision:
        seen.append(features)
        return soft(layer, features)

    network(tokens(), route)
    assert len(seen) == SHAPE.layers
    for features, z in zip(seen, read, strict=True):
        assert torch.equal(features.normed, z)
    first = network.layers[0]
    stream = first(
        first.begin(seen[0].state), seen[0].normed, soft(0, seen[0]).route, surroundings(9)
    )
    assert torch.equal(seen[1].state, stream.state)
    second = network.layers[1]
    ahead = stream.state + second.attention_step.logit_mu.sigmoid() * stream.velocity
    torch.testing.assert_close(seen[1].normed, layer_norm(ahead, second.attention_norm))


def parameters_of(network: Transformer) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_are_counted_and_made_equal() -> None:
    D, L = SHAPE.width, SHAPE.layers
    residual, momentum, plain = (
        parameters_of(Transformer(SHAPE, block=one)) for one in ("residual", NORMED, PLAIN)
    )
    assert momentum == residual + L * (4 * D + 6)
    assert plain == residual + L * 6
    narrower = Shape(
        vocabulary=11, context=16, width=D, layers=L, heads=4, window=3, mlp_width=4 * D - 2
    )
    assert parameters_of(Transformer(narrower, block=NORMED)) == residual + 6 * L
    with pytest.raises(UsageError, match="mlp_width: 0 given"):
        Shape(vocabulary=11, mlp_width=0)


def test_the_study_of_blocks_compares_equal_parameters() -> None:
    """All but 6 numbers a layer, out of 57 thousand."""
    study = Path(__file__).parents[1] / "benchmarks" / "studies" / "momentum.yaml"
    counts = {}
    for name, options in yaml.safe_load(study.read_text())["variants"].items():
        chosen = {key: value for key, value in options.items() if key in ("block", "mlp_width")}
        words = [f"--{key}={value}" for key, value in chosen.items()]
        counts[name] = parameters_of(read_options(words)[0].build(256)[0].network)
    least, most = min(counts.values()), max(counts.values())
    assert 0 < most - least <= 6 * 4 < 2e-4 * least


@pytest.mark.parametrize("block", BLOCKS)
def test_work_in_matrices_is_that_of_the_residual_block(block: str) -> None:
    shape = Shape(13, context=24, width=32, layers=3, heads=4, window=5, mlp_width=100)
    network = Transformer(shape, ["full"], block)
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, macs = counted(lambda: network(torch.randint(13, (1, 24)), pinned(network, "full")))
    attention = shape.layers * full_attention_macs(shape, 24) * 2 * 24 / 25
    assert macs == 24 * dense_macs(shape) + attention


def test_the_parameters_of_a_layer_are_called_as_they_always_were() -> None:
    names = {name for name in Transformer(SHAPE).state_dict() if name.startswith("blocks.0.")}
    assert names == {
        f"blocks.0.{name}"
        for name in (
            "attention_norm.weight", "attention_norm.bias", "attention.gain",
            "attention.project_qkv.weight", "attention.project_out.weight", "mlp_norm.weight",
            "mlp_norm.bias", "mlp.expand.weight", "mlp.project_out.weight",
        )
    }  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS)
def test_dropout_acts_in_training_alone(block: str) -> None:
    shape = Shape(vocabulary=11, context=16, width=16, layers=2, heads=4, dropout=0.5)
    network = Transformer(shape, block=block)
    assert not torch.equal(network(tokens(), soft), network(tokens(), soft))
    network.eval()
    assert torch.equal(network(tokens(), soft), network(tokens(), soft))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
@pytest.mark.parametrize("last", ["linear", "linear_momentum"])
def test_compiled_blocks_equal_the_eager_ones(last: str) -> None:
    network = shaken(NORMED, ("full", "window", last))
    expected = network(tokens(), soft)
    expected_grad = torch.autograd.grad(expected.square().sum(), network.embedding.weight)[0]
    network.compile_blocks()
    compiled = network(tokens(), soft)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    grad = torch.autograd.grad(compiled.square().sum(), network.embedding.weight)[0]
    torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-4)


def test_a_block_is_found_by_name_or_path() -> None:
    assert find_block("momentum") is MomentumBlock
    assert find_block("plain_momentum") is PlainMomentumBlock
    assert find_block("flawed.OwnBlock") is flawed.OwnBlock
    with pytest.raises(UsageError, match=r"block: no class 'momentun'.*did you mean"):
        find_block("momentun")
    with pytest.raises(UsageError, match=r"block: 'torch\.Tensor' is not a block"):
        find_block("torch.Tensor")

    class Nothing(Block):
        def look(self, stream: Stream) -> Tensor:
            return stream.state

    with pytest.raises(UsageError, match=r"Nothing.*advance"):
        Nothing(SHAPE, ["full"], 0)


@pytest.mark.parametrize("block", BLOCKS)
def test_training_takes_blocks_of_ours(block: str) -> None:
    require_sound_network(shaken(block))


@pytest.mark.parametrize("block", ["LooksAtTheFuture", "LooksAtThePast"])
def test_training_refuses_a_block_where_tokens_meet_outside_attention(block: str) -> None:
    with pytest.raises(UsageError, match=f"block: {block}: tokens meet outside attention"):
        require_sound_network(Transformer(SHAPE, block=f"flawed.{block}"))


def test_the_block_is_an_option_that_a_configuration_keeps(tmp_path: Path) -> None:
    config, saved = read_options(["--preset=tiny", "--block=momentum", "--mlp_width=126"])
    assert (config.block, config.mlp_width) == ("momentum", 126)
    assert {"--block=momentum", "--mlp_width=126"} <= set(train_words(saved))
    again, _ = read_options(train_words(saved))
    assert (again.block, again.mlp_width, again.width) == ("momentum", 126, config.width)
    assert isinstance(config.build(256)[0].network.layers[1], MomentumBlock)
    before = yaml.safe_load(saved)
    del before["block"], before["mlp_width"]  # a run from before there were blocks
    older = tmp_path / "older.yaml"
    older.write_text(yaml.safe_dump(before))
    assert read_options([f"--config={older}"])[0].block == "residual"


@pytest.mark.long
def test_a_run_is_trained_resumed_and_continued_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after the checkpoint of step 8, it ends with the weights of one that was not."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    words = [*MOMENT, f"--data.path={text}", "--block=momentum"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train([*words, f"--out={whole}"]) == 0
    append = Run.append_metrics

    def interrupted(self: Run, record: dict) -> None:
        append(self, record)
        if record["step"] == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            train([*words, f"--out={killed}"])
    assert train(["--resume", str(killed)]) == 0
    ours, theirs = (
        load_file(next(run.glob("checkpoint/*/model.safetensors"))) for run in (killed, whole)
    )
    assert any("logit_mu" in name for name in ours)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    capsys.readouterr()
    said = []
    for cache in ("true", "false"):
        options = [f"--cache={cache}", "--prompt=the quick", "--max_tokens=30", "--greedy=true"]
        assert generate([str(whole), *options]) in (0, None)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
