"""Whether a tokenizer has learned the script that a name is written in."""

from __future__ import annotations

from typing import Any

import regex

from .unknown_tokens import unknown_ids

SAMPLE_SENTENCES = {
    "Arabic": "القطة تجلس على كرسي قديم بجانب النافذة وتنظر إلى الثلج",
    "Cyrillic": "Кошка сидит на старом стуле у окна и смотрит на снег",  # noqa: RUF001
    "Devanagari": "बिल्ली खिड़की के पास पुरानी कुर्सी पर बैठी है",
    "Greek": "Η γάτα κάθεται στην παλιά καρέκλα δίπλα στο παράθυρο",  # noqa: RUF001
    "Han": "一只猫坐在窗边的旧椅子上看着外面的雪",
    "Hangul": "고양이가 창가의 낡은 의자에 앉아서 눈을 보고 있다",
    "Hebrew": "החתול יושב על כיסא ישן ליד החלון ומביט בשלג",
    "Hiragana": "ねこがまどのそばのふるいいすにすわっています",
    "Katakana": "コーヒー、テレビ、ホテル、レストラン、カメラ、アメリカ",
    "Latin": "The cat sits on an old chair by the window and looks at the snow",
    "Thai": "แมวนั่งอยู่บนเก้าอี้เก่าข้างหน้าต่าง",
}
"""A plain sentence in each script, for a single name may be a rare word in any."""
MOST_TOKENS = 0.8
"""Per letter of a sample. Qwen3 needs 0.3 to 0.75 where it has learned a script, others 0.9 on."""
MOST_DENSE_TOKENS = 1.25
"""The same where a letter is a word or a syllable of three sounds: Qwen3 0.7 and 1.1, CLIP 2."""
DENSE_SCRIPTS = frozenset({"Han", "Hangul"})


def knows_script(tokenizer: Any, text: str) -> bool:
    """Whether a tokenizer has learned the script of `text`.

    CLIP's can encode any letter in bytes, but has hardly read any that is not Latin: it spells
    them byte by byte, and the encoder behind it knows no word of them. So a script counts as
    learned where a plain sentence takes few tokens per letter, and no letter of `text` itself is
    unknown. A script without a sample is judged by `text`.

    Args:
        tokenizer: A fast tokenizer of transformers.
        text: A name, such as "皮卡丘".
    """
    if _holds_unknown(tokenizer, text):
        return False
    for script in _scripts_of(text):
        sample = SAMPLE_SENTENCES.get(script, text)
        most = MOST_DENSE_TOKENS if script in DENSE_SCRIPTS else MOST_TOKENS
        if _holds_unknown(tokenizer, sample) or _tokens_per_letter(tokenizer, sample) > most:
            return False
    return True


def _scripts_of(text: str) -> set[str]:
    """Unicode's names of the scripts of the letters in `text`; "" is one without a sample."""
    found = set()
    for letter in regex.findall(r"\p{L}", text):
        matching = [name for name in SAMPLE_SENTENCES if regex.match(rf"\p{{scx={name}}}", letter)]
        found |= {*matching} or {""}
    return found


def _holds_unknown(tokenizer: Any, text: str) -> bool:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return not unknown_ids(tokenizer).isdisjoint(ids)


def _tokens_per_letter(tokenizer: Any, text: str) -> float:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return len(ids) / max(1, len(regex.findall(r"[\p{L}\p{M}]", text)))
