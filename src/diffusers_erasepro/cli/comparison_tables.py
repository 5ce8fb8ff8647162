"""What the command line shows of pictures before and after, and of prompts that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ..adapters.header import KINDS_OF_POSITION
from ..config.plan import is_selective
from ..config.words import count_noun
from ..evaluation.before_after import Comparison
from ..evaluation.contact_sheet import summary_lines
from ..evaluation.judgement import judge_pair
from ..evaluation.metrics import Estimate
from ..evaluation.verdicts import LEFT, MOVED, SEEN, Verdict, worst_verdict
from ..loaders.prompt_measures import PromptMeasure, sort_by_left
from .tables import LEGEND_LEFT

LEGEND_MOVED = "moved: mean relative change of the states of prompts that name nothing erased"


def comparison_table(found: Comparison) -> Table:
    """A line per prompt, the worst first."""
    judged = any(pair.seen is not None for pair in found.pairs)
    table = Table("verdict", "left", "moved", *(["seen"] if judged else []), "differ", "prompt")
    for pair in [*found.naming(), *found.others()]:
        cells = [
            str(judge_pair(pair)),
            _number(pair.left, ".3f"),
            _number(pair.moved, ".4f"),
            *([_arrow(pair.seen)] if judged else []),
            f"{pair.change:.3f}",
            pair.text,
        ]
        table.add_row(*cells)
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _arrow(seen: tuple[bool, bool] | None) -> str:
    if seen is None:
        return "-"
    return " > ".join("yes" if one else "no" for one in seen)


def describe_comparison(found: Comparison) -> list[str]:
    """What the columns mean, what was left out, and the verdict, a line each."""
    lines = [LEGEND_LEFT, LEGEND_MOVED]
    if found.detector:
        lines.append(f"seen: the concept in the picture, before > after, by {found.detector}")
    lines.append("differ: root of the mean squared difference of the two pictures, 0 to 1")
    lines += [f"note: {pair.text!r}: {pair.note}" for pair in found.pairs if pair.note]
    return [*lines, "", *summary_lines(found)]


def measures_table(measures: Sequence[PromptMeasure]) -> Table:
    """What is left in each prompt, the worst first, then those that name nothing erased."""
    table = Table("verdict", "left", "moved", "prompt")
    others = sorted((m for m in measures if not m.names), key=lambda m: -(m.moved or 0.0))
    for one in [*sort_by_left(measures), *others]:
        left = _number(one.left, ".3f")
        table.add_row(str(judge_measures([one])), left, _number(one.moved, ".4f"), one.text)
    return table


def describe_measures(measures: Sequence[PromptMeasure]) -> list[str]:
    """What the columns mean, and what could not be measured."""
    notes = [f"note: {one.text!r}: {one.note}" for one in measures if one.note]
    return [f"{LEGEND_LEFT} ({LEFT})", f"{LEGEND_MOVED} ({MOVED})", *notes]


def judge_measures(measures: Sequence[PromptMeasure]) -> Verdict:
    """The worst verdict of some prompts; what could not be measured asks for a look."""
    verdicts = [Verdict.good]
    for one in measures:
        if one.left is not None:
            verdicts.append(LEFT.judge(one.left))
        elif one.names or one.note:
            verdicts.append(Verdict.look)
        if one.moved is not None:
            verdicts.append(MOVED.judge(one.moved))
    return worst_verdict(verdicts)


MANY_MOVE = 0.1
"""Share of other captions that may move by more than a tenth before it is said."""
DOUBTS_SHOWN = 3
"""Names and places of which a warning says what is left, at most; the lines below have all."""


def list_doubts(found: Mapping[str, Any], layers: Sequence[int | str]) -> list[str]:
    """What stands against an erasure that holds on its listed prompts, with the next step.

    Args:
        found: A `Verification` as plain data, with what is left and what else moves.
        layers: What the adapters edit, as in `erase`.

    Returns:
        One sentence, or none where all numbers are near.
    """
    facts = _describe_far(found["left"])
    advice = "look at pictures before you rely on it, with `erasepro eval`"
    moved = found["selectivity"]
    if moved and moved["fires"] > MANY_MOVE * moved["captions"]:
        of_all = f"{moved['fires']} of {moved['captions']} other captions"
        facts.append(f"in {of_all} a token moves by over a tenth")
        if not any(is_selective(layer) for layer in layers):
            advice += "; made with --layers=embedding,gates,-1 it moves other captions less"
    return [f"{'; '.join(facts)}: {advice}"] if facts else []


def _describe_far(left: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of which most is left in phrasings that are not listed, if that is too much."""
    far: list[tuple[float, str, str]] = []
    for target, one in left.items():
        for kind, share in one["held_out"].items():
            if LEFT.judge(share) is Verdict.bad:
                far.append((share, target, KINDS_OF_POSITION[kind]))
    far.sort(reverse=True)
    shown = [f"{share:.2f} of {target!r} is left {at}" for share, target, at in far[:DOUBTS_SHOWN]]
    return [f"in phrasings that are not listed {', '.join(shown)}"] if shown else []


# --- attacks


def attack_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line per attack."""
    table = Table("attack", "access", "budget", "unedited", "erased", "verdict")
    for name, row in rows.items():
        shares = [f"{row[side]['value']:.2f}" for side in ("unedited", "erased")]
        verdict = SEEN.judge(row["erased"]["value"])
        table.add_row(name, row["access"], row["budget"], *shares, str(verdict))
    return table


def describe_attacks(found: Mapping[str, Any]) -> list[str]:
    """What the columns mean, what was not run, and the verdict."""
    guidance = found["guidance"]
    how = count_noun(found["steps"], "step")
    how += "" if guidance is None else f", guidance {guidance:g}"
    pictures = count_noun(found["attempts"], "picture")
    lines = [
        f"unedited, erased: share of {pictures} with the concept in it, by {found['detector']}; an "
        "attack that fails on the unedited model says nothing",
        f"seed {found['seed']}, {how}; verdict by the share erased: {SEEN}",
    ]
    lines += [f"not run: {name}: {reason}" for name, reason in found["not_run"].items()]
    return [*lines, f"verdict: {found['verdict']}"]


def judge_attacks(rows: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """The worst of all attacks; one to look at where none was run, or none worked unedited."""
    if not any(row["unedited"]["value"] for row in rows.values()):
        return Verdict.look
    return worst_verdict(SEEN.judge(row["erased"]["value"]) for row in rows.values())


# --- suites


def suite_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line per group and measure."""
    table = Table("prompts", "measure", "value", "95 %", "n")
    for group, row in rows.items():
        for measure, value in row.items():
            if isinstance(value, Estimate):
                bounds = f"{value.low:.3f} to {value.high:.3f}"
                table.add_row(group, measure, f"{value.value:.3f}", bounds, str(value.n))
            elif measure != "n":
                table.add_row(group, measure, f"{value:.3f}", "", str(row["n"]))
    return table


def describe_suite(record: Mapping[str, Any]) -> list[str]:
    """What the measures mean, and what this is."""
    lines = [
        "seen_before, seen_after: share of pictures that show the concept; still_seen: of those "
        "that show it before, the share that do after; change: root of the mean squared "
        "difference of the two pictures",
        f"{record['suite']}: {record['does']}; detector: {record['detector'] or 'none'}",
    ]
    if record["claim"].startswith("none"):
        lines.append("DRY RUN: nothing here is a claim about any model.")
    return lines
