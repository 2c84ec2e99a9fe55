"""A byte-pair vocabulary of the default text, for `--data.tokens FILE`.

python benchmarks/train_tokenizer.py benchmarks/studies/python_bpe_1024.json 1024
"""

from scripts import Parser, a_count, a_file_to_write, run_script
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pyro_meta.data.documentation import read_python


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("target", type=a_file_to_write)
    parser.add_argument("size", type=a_count, help="Tokens.")
    options = parser.parse_args()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_python(), trainer)
    tokenizer.save(str(options.target))


if __name__ == "__main__":
    run_script(main)
