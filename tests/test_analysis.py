"""Diversity and uncertainty by hand, and the file format."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from processes import finish

from pyro_meta.analysis.depth_gates import Depth
from pyro_meta.analysis.diversity import (
    draws_differ,
    effective_number,
    entropy,
    jensen_shannon,
    mean_pairwise_divergence,
    quarters,
    routing_information,
    shares_of,
    spread_between,
)
from pyro_meta.analysis.plots.depth_gates import skipped
from pyro_meta.analysis.posterior_file import LAYOUT, PosteriorWriter, as_text
from pyro_meta.analysis.token_classes import frequencies, kinds


def test_entropy_by_hand() -> None:
    assert entropy(np.array([1.0, 0.0])) == 0.0
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(np.log(2))
    assert effective_number(np.full(3, 1 / 3)) == pytest.approx(3)


def test_load_counts_what_runs() -> None:
    means = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]])
    assert shares_of(np.array([0, 1, 1, 1]), means).tolist() == [0.25, 0.75]
    assert shares_of(np.full(4, -1), means) == pytest.approx([0.5, 0.5]), "a mixture runs"


def test_divergence_by_hand() -> None:
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(np.log(2))
    # Three rows, two alike: two of the three pairs differ wholly.
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert mean_pairwise_divergence(rows) == pytest.approx(2 / 3 * np.log(2))
    many = np.repeat(np.eye(2), 500, 0)
    assert mean_pairwise_divergence(many, 5000) == pytest.approx(np.log(2) * 500 / 999, abs=0.03)


def test_spread_between_groups_is_all_or_nothing() -> None:
    means = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    halves = {"a": np.array([True, True, False, False]), "b": np.array([False, False, True, True])}
    mixed = {"a": np.array([True, False, True, False]), "b": np.array([False, True, False, True])}
    assert spread_between(means, halves) == pytest.approx(1)
    assert spread_between(means, mixed) == pytest.approx(0)
    assert spread_between(np.full((4, 2), 0.5), halves) == 0


def test_classes_of_tokens() -> None:
    text = ["a", " the", "7", " ", "\n", "<b>", "ß", "", "\u2400"]
    found = {name: mask.nonzero()[0].tolist() for name, mask in kinds(text).items()}
    assert found == {"letters": [0, 1, 6], "digits": [2], "space": [3, 4], "punctuation": [5],
                     "other": [7, 8]}  # fmt: skip
    ids = np.repeat([5, 3, 9, 1], [60, 30, 6, 4])
    rates = {name: sorted(set(ids[mask])) for name, mask in frequencies(ids).items()}
    assert rates == {"common": [5], "middling": [3, 9], "rare": [1]}
    assert [int(mask.sum()) for mask in quarters(np.tile(np.arange(8), 3)).values()] == [6] * 4


def test_information_is_zero_for_a_blind_router_and_log_k_for_a_sharp_one() -> None:
    assert routing_information(np.tile([0.3, 0.7], (9, 1))) == pytest.approx(0)
    assert routing_information(np.eye(4)) == pytest.approx(np.log(4))


def test_two_draws_of_a_fair_coin_differ_half_of_the_time() -> None:
    draws = np.eye(2)[np.random.default_rng(0).integers(2, size=(4000, 1))]
    assert draws_differ(draws)[0] == pytest.approx(0.5, abs=0.05)


def stored(path: Path, name: str) -> xr.Dataset:
    """A group of a file, as anybody reads it."""
    with xr.open_dataset(path, group=name, engine="h5netcdf") as group:
        return group.load()


SIZES = {"chain": 1, "draw": 4, "layer": 2, "group": 1, "block_draw": 6}


def test_pieces_become_one_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    means = rng.dirichlet(np.ones(3), (2, 1, 10)).astype(np.float32)
    route, prior = rng.random((2, 1, 4, 2, 1, 5, 3))
    text = ["a", "\n", "<b>", "ß", "", "\0", "b", "c", "d", "e"]
    path = tmp_path / "posterior.nc"
    names = ["full", "window", "linear"]
    with PosteriorWriter(path, SIZES, names, {"kl_weight": 0.01}) as out:
        for piece in (slice(0, 3), slice(3, 10)):
            out.append(
                "token",
                {
                    "tokens": {
                        "posterior_mean": means[:, :, piece],
                        "text": as_text(text[piece]),
                    }
                },
            )
        out.append("token", {"posterior": {"route": route}, "prior": {"route": prior}})
        out.update("tokens", "token", 2, {"nll_averaged": np.ones(5)})
        out.put("sample_stats", "lp", np.arange(4.0)[None])
    stats = stored(path, "tokens")
    np.testing.assert_array_equal(stats["posterior_mean"].values, means)
    np.testing.assert_allclose(stored(path, "posterior")["route"].values, route, rtol=1e-6)
    np.testing.assert_allclose(stored(path, "prior")["route"].values, prior, rtol=1e-6)
    assert list(stats["mechanism"].values) == names and stats.attrs["kl_weight"] == 0.01
    assert list(stats["text"].values) == [*text[:5], "\u2400", *text[6:]]
    filled = np.isfinite(stats["nll_averaged"].values)
    assert filled.tolist() == [False] * 2 + [True] * 5 + [False] * 3
    assert [file.name for file in tmp_path.iterdir()] == ["posterior.nc"]
    drawn = [stored(path, name)["route"] for name in ("posterior", "prior")]
    assert drawn[0].dims == drawn[1].dims and drawn[0].sizes == drawn[1].sizes
    assert list(stored(path, "sample_stats")["lp"].values[0]) == [0, 1, 2, 3]
    for name in LAYOUT:
        assert stored(path, name).attrs["kl_weight"] == 0.01, "every group says what it is of"


def test_gates_are_in_the_file_where_there_are_any(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    means, runs = rng.random((2, 12)).astype(np.float32), np.ones((2, 12), np.int8)
    runs[1, ::2] = 0
    path = tmp_path / "posterior.nc"
    with PosteriorWriter(path, SIZES, ["full"], {}, is_gated=True) as out:
        stats = {"depth_mean": means, "depth_runs": runs, "depth_prior_mean": means / 2}
        out.append("token", {"tokens": stats | {"depth_kl": means}})
        out.append("token", {"prior": {"depth": rng.random((1, 4, 2, 3))}})
    written = stored(path, "tokens")
    depth = Depth.of({str(name): written[name].values for name in written})
    assert depth is not None and stored(path, "prior")["depth"].dims[2:] == ("layer", "token")
    assert [row["skipped"] for row in depth.by_layer()] == [0.0, 0.5]
    assert depth.by_layer()[1]["skipped_prior"] == pytest.approx(1 - means[1].mean() / 2)
    text = ["a", "b"] * 6
    listed = depth.to_json(text)["tokens"]
    assert [(one["text"], one["skipped"], one["count"]) for one in listed["most"]] == [
        ("a", 1.0, 6), ("b", 0.0, 6),
    ]  # fmt: skip
    assert [one["text"] for one in listed["least"]] == ["b", "a"]
    reading: Any = SimpleNamespace(depth=depth, text=text)
    left, right = skipped(reading).axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["a", "b", "a", "b"]
    assert len(left.patches) == 4
    with PosteriorWriter(path, SIZES, ["full"], {}) as out:
        out.append("token", {"tokens": {"nll_soft": np.ones(2)}})
    assert Depth.of({"nll_soft": np.ones(2)}) is None


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "posterior.nc"
    ragged = {"nll_soft": np.ones(3), "nll_hard": np.ones(4)}
    with (
        pytest.raises(ValueError, match="too many values"),
        PosteriorWriter(path, SIZES, ["full"], {}) as out,
    ):
        out.append("token", {"tokens": ragged})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_million_tokens_need_no_more_memory_than_one_piece(tmp_path: Path) -> None:
    code = """
import re, sys
import numpy as np
from pathlib import Path
from pyro_meta.analysis.posterior_file import PosteriorWriter, as_text

sizes = {"chain": 1, "draw": 4, "layer": 4, "group": 1, "block_draw": 6}
piece = np.full((4, 1, 8192, 3), 0.5, np.float32)
with PosteriorWriter(Path(sys.argv[1]), sizes, ["a", "b", "c"], {}) as out:
    for _ in range(128):
        stats = {"posterior_mean": piece, "prior_mean": piece, "kl": piece[..., 0]}
        out.append("token", {"tokens": stats | {"text": as_text(["x"] * 8192)}})
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(int(peak[1]) // 1024)
"""
    done = finish([sys.executable, "-c", code, str(tmp_path / "posterior.nc")])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 250, "MiB"


def test_a_broken_arvizrc_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "arvizrc").write_text("plot.max_subplots: many")
    code = """
import numpy as np
from pyro_meta.analysis.arviz_versions import pareto_k
from pyro_meta.errors import UsageError
try:
    pareto_k(np.arange(100.0))
except UsageError as error:
    assert "arvizrc" in str(error)
else:
    raise AssertionError("it was not read")
"""
    done = finish([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_analysis_and_report_import_no_torch() -> None:
    code = "import sys, pyro_meta.posterior.report; sys.exit('torch' in sys.modules)"
    done = finish([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
