"""What a comparison comes to: a verdict for every prompt and for all, with the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config.words import count_noun
from .before_after import Comparison, PicturePair
from .metrics import Estimate, rate
from .verdicts import LEFT, MOVED, SEEN, Verdict, worst_verdict


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on."""

    verdict: Verdict
    reasons: tuple[str, ...]


def judge_pair(pair: PicturePair) -> Verdict:
    """What one prompt comes to.

    A concept that is still seen is bad, whatever the states say: one picture cannot tell chance
    from habit, so `judge_comparison` counts instead.
    """
    verdicts = []
    if pair.left is not None:
        verdicts.append(LEFT.judge(pair.left))
    if pair.moved is not None:
        verdicts.append(MOVED.judge(pair.moved))
    if pair.names and pair.seen == (True, True):
        verdicts.append(Verdict.bad)
    if not verdicts:
        return Verdict.look
    return worst_verdict(verdicts)


def judge_comparison(found: Comparison) -> Judgement:
    """What all prompts come to: the worst of what is left, what is seen, and what else moved."""
    naming = found.naming()
    others = found.others()
    verdicts: list[Verdict] = []
    reasons: list[str] = []
    left = [pair.left for pair in naming if pair.left is not None]
    if left:
        verdicts.append(LEFT.judge(max(left)))
        reasons.append(
            f"{verdicts[-1]}: at most {max(left):.3f} of the concept is left in the states of "
            f"{count_noun(len(left), 'prompt')} with its name, {sum(left) / len(left):.3f} in the "
            f"mean ({LEFT})"
        )
    if any(pair.seen for pair in naming):
        seen = count_seen(naming)
        if seen is None:
            verdicts.append(Verdict.look)
            reasons.append(
                f"{Verdict.look}: the detector sees the concept in no picture before (of "
                f"{len(naming)}), so it cannot tell what the erasure does"
            )
        else:
            verdicts.append(SEEN.judge(seen.value))
            reasons.append(
                f"{verdicts[-1]}: of {count_noun(seen.n, 'picture')} with the concept before, "
                f"{round(seen.value * seen.n)} still with it after ({seen}; {SEEN})"
            )
    moved = [pair.moved for pair in others if pair.moved is not None]
    if moved:
        verdicts.append(MOVED.judge(sum(moved) / len(moved)))
        most = max(others, key=lambda pair: pair.moved or 0.0)
        reasons.append(
            f"{verdicts[-1]}: the states of {count_noun(len(moved), 'other prompt')} moved by "
            f"{sum(moved) / len(moved):.4f} in the mean ({MOVED}); most of all {most.text!r}, by "
            f"{most.moved:.4f}"
        )
    captions = found.captions
    if captions.count:
        verdicts.append(MOVED.judge(captions.moved))
        text, change = captions.most[0]
        reasons.append(
            f"{verdicts[-1]}: those of {count_noun(captions.count, 'caption')} to keep moved by "
            f"{captions.moved:.4f} in the mean; most of all {text!r}, by {change:.4f}"
        )
    if not verdicts:
        return Judgement(Verdict.look, ("nothing could be measured; look at the pictures",))
    return Judgement(worst_verdict(verdicts), tuple(reasons))


def count_seen(pairs: Sequence[PicturePair]) -> Estimate | None:
    """Of the pictures that show the concept before, the share that do after; None of none."""
    kept = [pair.seen[1] for pair in pairs if pair.seen and pair.seen[0]]
    return rate(kept, "seen") if kept else None
