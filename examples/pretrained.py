"""Route a pretrained model of transformers, in five lines and plain Pyro.

Run it on a folder that `save_pretrained` has left, such as what `make pretrained` unpacks:

    python examples/pretrained.py build/SmolLM2-135M-Instruct my-routes

A few steps on one text show the way; `python -m pyro_meta.train --pretrained FOLDER` does it well.
"""

import builtins
import inspect
import sys

import pyro
from transformers import AutoModelForCausalLM, AutoTokenizer

import pyro_meta

folder, routes = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
hf_model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()

network = pyro_meta.pretrained.wrap(hf_model, mechanisms=["full", "window"], window=128, sinks=4)
model = pyro_meta.LanguageModel(network, pyro_meta.LoadCategorical(network, rate=15.0))
guide = pyro_meta.CategoricalGuide(model, follows=True)
svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 5e-3}), pyro_meta.RouteELBO())
model.temperature = 3e-4  # a gain of a head and token is some thousandths of a nat

text = "\n\n".join(inspect.getdoc(getattr(builtins, name)) or "" for name in dir(builtins))
x = tokenizer(text, return_tensors="pt").input_ids[:, 2048:2560]
for step in range(5):
    said = model.own_prediction(x)  # what the model says of each next token, all routes full
    loss = svi.step(x, said) * model.temperature / x.numel()
    print(f"step {step}  loss {loss:.3f}")

routed = pyro_meta.pretrained.convert(hf_model, guide)  # a model of transformers as before
prompt = tokenizer("The sun rises in the", return_tensors="pt")
print(tokenizer.decode(routed.generate(**prompt, max_new_tokens=12, do_sample=False)[0]))

pyro_meta.pretrained.save_routes(routed, routes)
pyro_meta.pretrained.restore(hf_model)  # undone
pyro_meta.pretrained.load_routes(hf_model, routes)  # and done again
