"""What tiny runs compute, to the last bit: golden files that a change of the layout must not move.

    python tests/golden.py            write tests/golden/*.json anew, or those that are named

Eight runs of a few dozen steps, each with the figures of every step, its results, and a text that
it decodes; and the report.json of the default one. On the machine that wrote them they are equal to
the last bit. Elsewhere sums run in another order, and losses are equal within 1e-4.
"""

import contextlib
import io
import json
import os
import platform
import random
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import pyro_meta.generate
import pyro_meta.report
import pyro_meta.train
from pyro_meta.posterior import importance

FOLDER = Path(__file__).parent / "golden"
COMMON = [
    "--context=32", "--window=6", "--width=32", "--layers=3", "--heads=2", "--batch=4",
    "--steps=32", "--validate_every=16", "--validation_tokens=512", "--checkpoint_every=16",
    "--accelerator=cpu", "--seed=3", "--kl.weight=0.00002", "--harden.price=0", "--harden.end=0.9",
    "--optim.router=30", "--optim.router_begin=0.02", "--optim.router_end=0.8",
]  # fmt: skip
RUNS = {
    "default": ["--guide.start=0.1"],
    "recall": ["--data=Recall", "--data.pairs=3", "--data.distance=8", "--guide.start=0.1"],
    "budget": ["--budget=0.6", "--kl.weight=0.002"],
    "depth": ["--depth=beta", "--gate.skip=0.2", "--gate.start=0.5", "--dropout=0.1"],
    "momentum_chunks": [
        "--block=momentum",
        "--mechanisms=[full,linear_momentum,chunk,chunk_sliding,chunk_learned,chunk_sentence]",
        "--chunk=4",
    ],
    "weights": ["--guide=DirichletGuide", "--guide.start=0.1"],
    "groups": ["--prior=LoadDirichlet", "--groups=kv", "--budget=0.6", "--kl.weight=0.002"],
    "others": [
        "--guide=ConcreteGuide", "--prior=LearnedDirichlet", "--depth=point", "--kv_heads=1",
        "--accumulate=2", "--harden.final=0.8",
    ],
}  # fmt: skip
LEFT_OUT = {
    "seconds", "tokens_per_second", "device", "versions", "finished", "tokens_per_second_routed",
    "tokens_per_second_full", "speed_up_model", "speed_up_attention", "speed_up_depth", "clock",
    "clock_noise",
    "commit", "hardware", "folder", "run", "checkpoint", "data", "weights", "one_token",
    "about", "tables", "pictures", "states_by_layer",
}  # fmt: skip


def machine() -> dict[str, str]:
    """What has to agree for sums to run in the same order."""
    names = [platform.machine()]
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0], "torch": torch.__version__, "numpy": np.__version__}


def text() -> str:
    """Sentences of a few dozen words, always the same."""
    draw = random.Random(0)
    words = [
        "".join(draw.choice("aeiou") + draw.choice("bdklmnrst") for _ in range(n))
        for n in (1, 2, 2, 3) * 8
    ]
    sentences = (
        " ".join(draw.choice(words) for _ in range(draw.randint(3, 9))) for _ in range(400)
    )
    return ". ".join(sentences) + "."


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Train the run called `name` into `folder` and tell what it computed."""
    source = folder.parent / "text.txt"
    source.write_text(text(), encoding="utf-8")
    own = RUNS[name]
    is_recall = "--data=Recall" in own
    words = [*([] if is_recall else [f"--data.path={source}"]), *COMMON, *own, f"--out={folder}"]
    with (
        patch.object(importance, "ENDS", 1),  # blocks drawn again and again would take most of it
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        assert pyro_meta.train.main(words) == 0
    decoded = io.StringIO()
    with contextlib.redirect_stdout(decoded):
        prompt = folder.parent / "prompt.txt"
        prompt.write_text("a" if is_recall else text()[:20], encoding="utf-8")
        pyro_meta.generate.main(
            [str(folder), f"--prompt_file={prompt}", "--max_tokens=60", "--seed=1"]
        )
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {
        "steps": [timeless(json.loads(line)) for line in lines],
        "summary": timeless(summary),
        "decoded": decoded.getvalue(),
    }


def report(folder: Path) -> dict[str, Any]:
    """The report.json of a run."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pyro_meta.report.main([str(folder)])
    found: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text("utf-8"))
    return timeless(found)


def timeless(value: Any) -> Any:
    """The same without what the clock, the machine, the folder and a hash of weights say."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in LEFT_OUT}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"PYRO_META_CACHE": f"{place}/cache", "PYRO_META_PROFILE": "default"}
        for name in sys.argv[1:] or RUNS:
            folder = Path(place) / name
            found = {"machine": machine(), **measure(name, folder)}
            if name == "default":
                found["report"] = report(folder)
            path = FOLDER / f"{name}.json"
            path.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
