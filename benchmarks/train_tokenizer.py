"""A byte-pair vocabulary of the default text, for `--data.tokens FILE`.

python benchmarks/train_tokenizer.py benchmarks/studies/python_bpe_1024.json 1024
"""

import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pyro_meta.data.documentation import read_python


def main() -> None:
    target, size = sys.argv[1], int(sys.argv[2])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_python(), trainer)
    tokenizer.save(target)


if __name__ == "__main__":
    main()
