"""The closed vocabulary and the texts that are made of it.

Every text is a list of lowercase words out of `VOCABULARY`. `item` draws one thing a person might say (a number, a
date, a spelled call sign), `text` strings items and loose words together up to a number of words.
"""

from __future__ import annotations

from random import Random

UNITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = "oh hundred thousand million point minus".split()
NATO = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
).split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
RELATIVE_DAYS = "today tomorrow yesterday".split()
COMMANDS = "yes no hello goodbye please thank you start stop cancel continue help".split()

VOCABULARY = list(
    dict.fromkeys([*UNITS, *TEENS, *TENS, *NUMBER_WORDS, *NATO, "niner", *DAYS, *MONTHS, *RELATIVE_DAYS, *COMMANDS])
)

Words = list[str]


def cardinal(number: int) -> Words:
    """Spell a number below 10⁹ the American way, without "and"."""
    if number < 10:
        return [UNITS[number]]
    if number < 20:
        return [TEENS[number - 10]]
    if number < 100:
        return [TENS[number // 10 - 2]] + (cardinal(number % 10) if number % 10 else [])
    for value, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= value:
            head, rest = divmod(number, value)
            return [*cardinal(head), name] + (cardinal(rest) if rest else [])
    raise AssertionError


def digits(random: Random, count: int) -> Words:
    """Digits read one by one; zero is "zero" or "oh" throughout, now and then a nine is "niner"."""
    zero = "oh" if random.random() < 0.3 else "zero"
    nine = "niner" if random.random() < 0.1 else "nine"
    return [{"zero": zero, "nine": nine}.get(word, word) for word in random.choices(UNITS, k=count)]


def number(random: Random) -> Words:
    """A whole number or a decimal, sometimes negative; every order of magnitude is equally likely."""
    words = cardinal(random.randrange(10 ** random.randint(1, 7)))
    if random.random() < 0.3:
        words += ["point", *random.choices(UNITS, k=random.randint(1, 3))]
    return ["minus", *words] if random.random() < 0.2 else words


def date(random: Random) -> Words:
    """A day of the year, with its weekday or year at times: "friday march twenty one twenty twenty six"."""
    words = [random.choice(MONTHS), *cardinal(random.randint(1, 31))]
    if random.random() < 0.5:
        words.insert(0, random.choice(DAYS))
    if random.random() < 0.35:
        words += cardinal(random.choice((19, 20))) + cardinal(random.randint(10, 99))
    return words


def call_sign(random: Random) -> Words:
    """Letters and digits of the radio alphabet mixed: "november one seven niner kilo"."""
    nine = {"nine": "niner"}
    return [
        random.choice(NATO) if random.random() < 0.6 else nine.get(unit, unit)
        for unit in random.choices(UNITS, k=random.randint(3, 7))
    ]


def courtesy(random: Random) -> Words:
    """What is said around commands: "please continue", "no thank you", "cancel tomorrow"."""
    command = random.choice("start stop cancel continue help".split())
    day = random.choice(RELATIVE_DAYS + DAYS)
    return random.choice(
        (
            ["hello"],
            ["goodbye"],
            [random.choice(("yes", "no"))],
            [command],
            [day],
            ["yes", "please"],
            ["thank", "you"],
            ["no", "thank", "you"],
            ["thank", "you", "goodbye"],
            ["please", command],
            [command, "please"],
            ["please", command, day],
            ["hello", "please", "help"],
        )
    )


def item(random: Random) -> Words:
    """One thing a person might say."""
    kind = random.random()
    if kind < 0.25:
        return digits(random, random.randint(2, 8))
    if kind < 0.45:
        return number(random)
    if kind < 0.60:
        return random.choices(NATO, k=random.randint(2, 6))
    if kind < 0.70:
        return call_sign(random)
    if kind < 0.85:
        return date(random)
    return courtesy(random)


def text(random: Random, count: int, loose: float = 0.35) -> Words:
    """Exactly `count` words: items, and with probability `loose` runs of unrelated words in place of one."""
    words: Words = []
    while len(words) < count:
        words += random.choices(VOCABULARY, k=random.randint(1, 4)) if random.random() < loose else item(random)
    return words[:count]
