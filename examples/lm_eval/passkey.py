"""Evaluate a routed model by lm-eval, on a task of a local file: nothing is fetched.

    pip install lm_eval
    cd examples/lm_eval
    python passkey.py ../../build/SmolLM2-135M-Instruct ../../runs/mine

The model is evaluated as it is, then along the routes of the run. Chance is 25%.
"""

import json
import sys
from pathlib import Path

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from pyro_meta.data.documentation import read_python
from pyro_meta.data.retrieval import Retrieval
from pyro_meta.pretrained import convert, restore
from pyro_meta.training.run import Run

LENGTH, COUNT, CHOICES = 1500, 24, 4
HERE = Path(__file__).parent


def write_task(tokenizer, path: Path) -> None:
    """Questions behind long texts, each with four answers to choose from."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    filler = np.array(encode(next(read_python())[:200_000]))
    retrieval = Retrieval(encode, filler)
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(COUNT):
            question = retrieval(LENGTH, (number + 0.5) / COUNT, rng)
            shown = question.tokens[: len(question.tokens) - len(question.answer) + 1]
            answer = tokenizer.decode(question.answer)
            drawn = (f" {one}" for one in rng.permutation(np.arange(10_000, 100_000))[:CHOICES])
            others = [one for one in drawn if one != answer][: CHOICES - 1]
            place = int(rng.integers(CHOICES))
            choices = [*others[:place], answer, *others[place:]]
            row = {"text": tokenizer.decode(shown), "choices": choices, "answer": place}
            file.write(json.dumps(row) + "\n")


def main(folder: str, run: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    write_task(tokenizer, HERE / "passkey.jsonl")
    _, guide, _, _ = Run.open(run).load()
    hf_model = guide.model.network.hf_model
    tasks = TaskManager(include_path=str(HERE), include_defaults=False)
    for name in ("as it is", "routed"):
        if name == "routed":
            convert(hf_model, guide)
        scored = HFLM(pretrained=hf_model, tokenizer=tokenizer, batch_size=1)
        found = simple_evaluate(scored, tasks=["passkey_in_text"], task_manager=tasks)
        print(f"{name}: {found['results']['passkey_in_text']['acc,none']:.1%} (chance 25%)")
    restore(hf_model)


if __name__ == "__main__":
    main(*sys.argv[1:])
