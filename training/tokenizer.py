"""Make the tokenizer: byte-level BPE in which each word of the vocabulary, with the space before it, is one token."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from words import VOCABULARY

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>"]
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def prepare(tokenizer: Tokenizer) -> pre_tokenizers.ByteLevel:
    """Give a tokenizer everything but its vocabulary; its alphabet comes back."""
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, alphabet])
    tokenizer.decoder = decoders.ByteLevel()
    return alphabet


def make(file: Path) -> None:
    """Merge bytes until every word is whole; the prompt's "user" and "assistant" are words too."""
    tokenizer = Tokenizer(models.BPE())
    alphabet = prepare(tokenizer)
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


def restore(tokens: list[str], merges: list[str]) -> Tokenizer:
    """The tokenizer of a vocabulary by id and of merges, "left right"; what looks like `SPECIAL` is special."""
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    prepare(made)
    special = [token for token in tokens if token.startswith("<") and token.endswith(">") and len(token) > 2]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def extend(tokens: list[str], merges: list[str], text: str) -> None:
    """Add tokens and merges, in place, until every part of `text` that the pattern leaves whole is one token."""
    parts = restore(tokens, merges).pre_tokenizer.pre_tokenize_str(text)
    for part in dict.fromkeys(letters for letters, _ in parts):
        found = [token.value for token in restore(tokens, merges).model.tokenize(part)]
        while len(found) > 1:
            merges.append(f"{found[0]} {found[1]}")
            found[:2] = ["".join(found[:2])]
            if found[0] not in tokens:
                tokens.append(found[0])
