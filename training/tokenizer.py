"""Make the tokenizer: byte-level BPE in which each word of the vocabulary, with the space before it, is one token."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from words import VOCABULARY

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>"]
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make(file: Path) -> None:
    """Merge bytes until every word is whole; the prompt's "user" and "assistant" are words too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, alphabet])
    tokenizer.decoder = decoders.ByteLevel()
    whole = [f" {word}" for word in VOCABULARY] + ["user", "assistant"]
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, initial_alphabet=sorted(alphabet.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(whole, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    split_words = [word for word in whole if len(tokenizer.encode(word).ids) != 1]
    if split_words:
        raise RuntimeError(f"not one token: {split_words}")
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))
