"""The pictures of a report: how each is drawn, how it is read, and what it says in words."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from pyro_meta.analysis.arviz_groups import of_predictions, shares_by_draw
from pyro_meta.analysis.findings import Findings
from pyro_meta.analysis.importance_weights import USABLE
from pyro_meta.analysis.plots import (
    by_arviz,
    calibration,
    depth_gates,
    posterior_checks,
    power_scaling,
    routes,
    single_tokens,
    training,
)
from pyro_meta.analysis.reading import MOST_ROWS
from pyro_meta.analysis.sensitivity import Sensitivity

CORNER = 0.9
"""Share of a mechanism from which on a route is called decided."""


@dataclass(frozen=True)
class Picture:
    """One picture of a run."""

    name: str
    """Of its file, without ending."""
    section: str
    title: str
    how: str
    """One sentence: how to read it."""
    draw: Callable[[Findings], Figure]
    says: Callable[[Findings], str]
    """What is to be seen, in words: the alternative text."""
    applies: Callable[[Findings], bool] = lambda findings: True
    is_narrow: bool = False


def _known(found: Sensitivity | None) -> Sensitivity:
    assert found is not None
    return found


def _percent(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in values.items())


def _shares(findings: Findings) -> str:
    run = findings.reading
    by_layer = [
        f"{name}: {_percent(dict(zip(run.mechanisms, row, strict=True)))}"
        for name, row in zip(run.layer_names, run.shares.tolist(), strict=True)
    ]
    among = "" if run.depth is None else ", of those that run the layer"
    return f"Share of tokens that run each mechanism{among}. " + "; ".join(by_layer) + "."


def _decided(findings: Findings) -> str:
    """How many of the dots of each layer lie in a corner."""
    run = findings.reading
    clouds = run.means if run.is_of_choices else run.draws.transpose(1, 0, 2, 3)
    shares = (clouds.max(-1) >= CORNER).reshape(len(run.means), -1).mean(1)
    what = "posterior means" if run.is_of_choices else "draws"
    told = ", ".join(
        f"{name} {share:.0%}" for name, share in zip(run.layer_names, shares, strict=True)
    )
    return f"Share of {what} that give one mechanism {CORNER:.0%} or more: {told}."


def _heads(findings: Findings) -> str:
    run = findings.reading
    name, shares = run.mechanisms[0], run.shares[:, 0]
    most = [int(row) for row in np.argsort(-shares, kind="stable")[:6]]
    told = ", ".join(f"{run.layer_names[row]} {shares[row]:.0%}" for row in most)
    idle = int((shares < 0.01).sum())
    return (
        f"{name}: {shares.mean():.0%} of all; most in {told}; below 1% in {idle} of {len(shares)}."
    )


def _medians(findings: Findings) -> str:
    run = findings.reading
    medians = np.median(run.means, 1)
    told = [
        f"{run.layer_names[row]}: {_percent(dict(zip(run.mechanisms, medians[row], strict=True)))}"
        for row in run.rows[:MOST_ROWS]
    ]
    rest = len(medians) - len(told)
    return "Median posterior means. " + "; ".join(told) + (f"; and {rest} more." if rest else ".")


def _skipped(findings: Findings) -> str:
    run = findings.reading
    assert run.depth is not None
    rows = [
        f"{name}: {row['skipped']:.0%} (prior {row['skipped_prior']:.0%})"
        for name, row in zip(run.layer_names, run.depth.by_layer(), strict=True)
    ]
    return "Share of tokens that skip each layer. " + "; ".join(rows) + "."


def _entropies(findings: Findings) -> str:
    run = findings.reading
    first, last = run.entropy_by_step[0].mean(), run.entropy_by_step[-1].mean()
    return (
        f"Routing entropy over {len(run.steps)} steps: from {first:.2f} of log K at first to "
        f"{last:.2f} at the end. Then {run.hard_share[-1]:.0%} of tokens are hard, the KL is "
        f"{run.kl_by_step[-1]:.3g} nats per token and its weight {run.kl_weight_by_step[-1]:.3g}."
    )


def _kl(findings: Findings) -> str:
    medians = np.median(findings.reading.kl, axis=1)
    if findings.reading.has_many_rows:
        low, high = medians.min(), medians.max()
        return f"Median KL by layer and group, nats: {low:.2f} to {high:.2f}."
    return "Median KL by layer, nats: " + ", ".join(f"{value:.2f}" for value in medians) + "."


def _k_hats(findings: Findings) -> str:
    rows = [
        f"{name}: {found.usable:.0%} of blocks below {USABLE}, median {np.median(found.k_hat):.2g}"
        for name, found in findings.targets()
    ]
    return "k-hat. " + "; ".join(rows) + "."


def _single_tokens(findings: Findings) -> str:
    rows = [
        f"{name} {site['efficiency_median']:.2f}, {site['gap']['value']:.2g}"
        for name, site in single_tokens.shown(findings)
    ]
    return "Effective share of draws, and gap in nats per token: " + "; ".join(rows) + "."


def _beside(findings: Findings) -> str:
    found = findings.belief["beside_truth"][0]
    mean = {who: np.array(found["moments"][f"{who}_mean"]) for who in ("guide", "truth")}
    apart = np.abs(mean["guide"] - mean["truth"]).sum(-1) / 2
    return (
        f"Guide and {found['method']} differ in the mean route of {apart.size} tokens and layers "
        f"by {apart.mean():.2f} in total variation on average, {apart.max():.2f} at most."
    )


def _shares_of_draws(findings: Findings) -> str:
    run = findings.reading
    draws, prior = shares_by_draw(run), run.prior_draw_shares
    means = [one[..., 0].mean(0) for one in (draws, prior)]
    told = [
        f"{run.layer_names[row]}: {means[0][row]:.0%} (prior {means[1][row]:.0%})"
        for row in run.rows[: MOST_ROWS // 2]
    ]
    return f"Share of {run.mechanisms[0]} in draws of the posterior. " + "; ".join(told) + "."


def _predicted(findings: Findings) -> str:
    run = findings.reading
    data = of_predictions(run)
    came, drawn = (
        data[group]["rank"].values for group in ("observed_data", "posterior_predictive")
    )
    return (
        f"The median rank of a token by frequency is {np.median(came):.1f} in the text and "
        f"{np.median(drawn):.1f} in {len(run.predicted)} predictive draws of it."
    )


def _pit(findings: Findings) -> str:
    values = by_arviz.pit_values(findings.reading)
    edges = np.quantile(values, [0.25, 0.5, 0.75])
    return (
        f"Quartiles of LOO-PIT over {len(values):,} tokens: "
        + ", ".join(f"{edge:.2f}" for edge in edges)
        + " (right predictions: 0.25, 0.50, 0.75)."
    )


def _sensitive(findings: Findings) -> str:
    found = findings.sensitivity
    assert found is not None
    rows = [
        f"{component}: "
        + ", ".join(
            f"{findings.reading.layer_names[row]} {moved:.2g} (chance {chance:.2g})"
            for row, moved, chance in zip(
                found.rows, reaction.by_layer, reaction.chance, strict=True
            )
        )
        for component, reaction in found.of.items()
    ]
    return "Distance that shares of mechanisms move by per doubling. " + "; ".join(rows) + "."


def _harm(findings: Findings) -> str:
    found = findings.hardening()
    return (
        f"Hard minus soft loss: {found.difference[0]:+.4f} nats in the most certain tenth, "
        f"{found.difference[-1]:+.4f} in the least certain; rank correlation over tokens "
        f"{found.rank_correlation:.3f}."
    )


def _risk(findings: Findings) -> str:
    rows = [f"{name} {curve.area:.3f}" for name, curve in findings.selective().items()]
    return "Area under the risk-coverage curve, by " + ", by ".join(rows) + "."


def _calibration(findings: Findings) -> str:
    rows = [f"{name} {found.error:.3f}" for name, found in findings.calibrated().items()]
    return "Expected calibration error: " + ", ".join(rows) + "."


PICTURES = (
    Picture(
        "load_by_layer", "routes", "Shares of mechanisms",
        "Wide bars say which mechanism tokens run, thin ones what the prior would do: where they "
        "agree, the text has changed nothing.",
        lambda findings: routes.load_by_layer(findings.reading), _shares,
        lambda findings: not findings.reading.has_many_rows,
    ),
    Picture(
        "heads", "routes", "Shares of mechanisms by head group",
        "A square is a layer and a group of heads: the stronger its colour, the more tokens run "
        "the mechanism there.",
        lambda findings: routes.heads(findings.reading), _heads,
        lambda findings: findings.reading.facts["groups"] > 1
        and len(findings.reading.mechanisms) > 1,
    ),
    Picture(
        "simplex", "routes", "Posteriors on the simplex",
        "Every dot is one token: a draw of its weights or, of choices, its posterior mean. Dots in "
        "a corner are decided, dots in the middle mix mechanisms or are unsure.",
        lambda findings: routes.simplex(findings.reading),
        _decided,
        lambda findings: not findings.reading.has_many_rows,
    ),
    Picture(
        "forest", "routes", "Posterior means by layer",
        "A dot is the median token, thick lines hold half of the tokens and thin ones 90%: short "
        "lines are a router that treats all tokens alike.",
        lambda findings: routes.forest(findings.reading),
        lambda findings: _medians(findings),
    ),
    Picture(
        "loads_of_draws", "uncertainty", "Shares of mechanisms in draws, by ArviZ",
        "A dot or the middle of a line is the median share over draws of the posterior, thick "
        "lines hold half of them and thin ones 90%: how well the share of a mechanism is known.",
        lambda findings: by_arviz.shares_of_draws(findings.reading), _shares_of_draws,
        lambda findings: len(findings.reading.mechanisms) > 1,
    ),
    Picture(
        "prior_and_posterior", "uncertainty", "Prior against posterior, by ArviZ",
        "Two humps apart are a share that the text has moved, a narrow one in a broad one a share "
        "that it has settled; one on the other it has said nothing.",
        lambda findings: by_arviz.prior_and_posterior(findings.reading), _shares_of_draws,
        lambda findings: bool(by_arviz.compared_rows(findings.reading)),
    ),
    Picture(
        "skipped", "depth", "Who skips layers",
        "Wide bars say how many tokens skip a layer once gates are hard, thin ones what the "
        "prior would do. The other panel lists the tokens that skip most, and below its line those "
        "that skip least.",
        lambda findings: depth_gates.skipped(findings.reading), _skipped,
        lambda findings: findings.reading.depth is not None,
    ),
    Picture(
        "entropy_over_training", "training", "Entropy over training",
        "Lines that fall are routers that decide. Below them, at the same steps, stand the share "
        "of tokens that run one mechanism alone, the KL, and the weight that the loss gives it.",
        lambda findings: training.entropy_over_training(findings.reading), _entropies,
    ),
    Picture(
        "kl_by_layer", "collapse", "KL to the prior",
        "Each line shows how far the posteriors of one layer's tokens are from the prior: all of "
        "it at 0 is a guide that has learned nothing.",
        lambda findings: posterior_checks.kl_by_layer(findings.reading), _kl,
    ),
    Picture(
        "single_tokens", "belief", "The choices of single tokens",
        "The first panel says how many of the guide's draws count in full as draws of the best "
        "posterior found that sees no more than the guide. The second says what that posterior "
        "gains on real targets, with 95% intervals.",
        single_tokens.by_layer, _single_tokens,
        lambda findings: bool(findings.belief.get("one_token")),
    ),
    Picture(
        "beside_truth", "belief", "A handful of tokens beside the truth",
        "Filled dots are what the guide says of the last tokens of a text, open ones their exact "
        "posterior once the target is known; lines are one standard deviation.",
        posterior_checks.beside_truth, _beside,
        lambda findings: bool(findings.belief.get("beside_truth")),
    ),
    Picture(
        "power_scaling", "belief", "Sensitivity to prior and likelihood",
        "Dots say how far shares would move if the prior, or the likelihood, counted twice; dots "
        "left of their black mark are no more than chance.",
        lambda findings: power_scaling.power_scaling(
            findings.reading, _known(findings.sensitivity)
        ),
        _sensitive, lambda findings: findings.sensitivity is not None,
    ),
    Picture(
        "predictive_check", "use", "Posterior predictive check, by ArviZ",
        "Ids are ranked by frequency, the commonest first; where the line of the text lies among "
        "those of the draws, common and rare tokens are predicted as often as they come.",
        lambda findings: by_arviz.predictive_check(findings.reading), _predicted,
    ),
    Picture(
        "loo_pit", "use", "LOO-PIT, by ArviZ",
        "The rank of what came among predictions that had not seen it, against a uniform one: a "
        "line inside the band is a prediction neither too high, too low, too sure nor too unsure.",
        lambda findings: by_arviz.pit(findings.reading), _pit,
    ),
    Picture(
        "harm_by_uncertainty", "use", "Does uncertainty foretell what turning hard costs?",
        "Dots that rise to the right mean that rounding hurts where the router was unsure, so that "
        "its uncertainty is worth something; bars are 95% intervals.",
        calibration.harm_by_uncertainty, _harm,
    ),
    Picture(
        "risk_coverage", "use", "Risk and coverage",
        "Keep the surest tokens and count the errors among them: the lower the line to the left, "
        "the more its uncertainty knows.",
        calibration.risk_coverage, _risk,
    ),
    Picture(
        "k_hat", "appendix", "Importance weights: k-hat",
        "Each dot is a short block of tokens. On green and yellow, left of 0.7, its draws could "
        "stand for the posterior that is named; right of it they cannot. Where y is known, no "
        "guide of this kind passes.",
        posterior_checks.k_hats, _k_hats, lambda findings: bool(findings.block_lengths),
    ),
    Picture(
        "calibration", "use", "Calibration of the next token",
        "On the diagonal a prediction of 70% comes true 70% of the time; below it the model is too "
        "sure. Bins hold equally many tokens.",
        calibration.calibration, _calibration, is_narrow=True,
    ),
)  # fmt: skip
