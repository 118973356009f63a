"""Measures the embedded analyst against people: their sentiment labels and their question marks (Topical-Chat).

The rules were tuned on the first 60 conversations only; the other 60 are the figure to quote. A figure alone
deceives, so each stands beside its base rate, which is what always answering the commonest class would score, and its
confusion table.

Sentiment. The annotators' labels become three classes: Curious to dive deeper, Happy and Surprised are positive;
Neutral is neutral; Sad, Disgusted, Angry and Fearful are negative. Ours: interesting and happy are positive; neutral
is neutral; boring, angry and sad are negative. A conversation's class is the commonest label of its messages (a tie
goes to neutral), or the sign of their mean (+1, 0, -1; within a third of 0 is neutral). Kappa is agreement beyond
chance: 0 is chance, 1 is perfect.

Questions. The reference is whether a user message holds a question mark. The marks are then taken out (made full
stops, or removed altogether) and the rules have to find the question by its form. It is a rough reference: people
leave marks out, so that some "false" finds are real questions, and put marks behind what asks for nothing ("really?",
"I know, right?").

Usage: scripts/bench/analyst.py [FOLDER]     (default: ../shared/data beside the project)
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from convo.analysis import local  # noqa: E402  the project need not be installed to be measured
from convo.analysis.local import asked, words  # noqa: E402
from convo.conversation.model import Conversation, EmotionName, Turn  # noqa: E402

Sign = Literal["positive", "neutral", "negative"]
T = TypeVar("T")
Pair = tuple[Sign, Sign]

SIGNS: tuple[Sign, ...] = ("positive", "neutral", "negative")
OF_LABEL: dict[str, Sign] = {
    "Curious to dive deeper": "positive",
    "Happy": "positive",
    "Surprised": "positive",
    "Neutral": "neutral",
    "Sad": "negative",
    "Disgusted": "negative",
    "Angry": "negative",
    "Fearful": "negative",
}
OF_EMOTION: dict[str, Sign] = {
    "interesting": "positive",
    "happy": "positive",
    "neutral": "neutral",
    "boring": "negative",
    "angry": "negative",
    "sad": "negative",
}
TUNED_ON = 60
NOWHERE = datetime.fromtimestamp(0, UTC)


class Item(msgspec.Struct):
    """One message as the data has it."""

    character: str
    content: str


class Request(msgspec.Struct):
    """One conversation as the data has it."""

    conversation_id: str
    conversation_logs: list[Item]


class Labels(msgspec.Struct):
    """The annotators' labels of one conversation."""

    conversation_id: str
    sentiment_per_turn: list[str]


class Sample(msgspec.Struct):
    """One conversation with the sign that people gave each of its messages."""

    conversation: Conversation
    signs: list[Sign]

    def of_user(self) -> list[tuple[str, Sign]]:
        """Give the user's messages with their signs."""
        pairs = zip(self.conversation.turns, self.signs, strict=True)
        return [(turn.text, sign) for turn, sign in pairs if turn.speaker == "user"]


def samples(folder: Path) -> list[Sample]:
    """Read the conversations and their labels.

    Raises:
        OSError: where a file is not there or cannot be read.
    """
    requests = _lines(folder / "topical_chat_requests.jsonl", Request)
    labels = _lines(folder / "topical_chat_sentiments.jsonl", Labels)
    of_id = {line.conversation_id: [OF_LABEL[label] for label in line.sentiment_per_turn] for line in labels}
    return [Sample(conversation=_conversation(line), signs=of_id[line.conversation_id]) for line in requests]


def _lines(path: Path, kind: type[T]) -> list[T]:
    return [msgspec.json.decode(line, type=kind) for line in path.read_bytes().splitlines()]


def _conversation(line: Request) -> Conversation:
    turns = tuple(
        Turn(speaker="user" if item.character.startswith("USER") else "bot", text=item.content, at=NOWHERE)
        for item in line.conversation_logs
    )
    return Conversation(conversation_id=line.conversation_id, user_id="-", bot_id="-", digest="-", turns=turns)


# --- sentiment


def majority(signs: Iterable[Sign]) -> Sign:
    """Give the commonest sign; a tie goes to neutral."""
    counted = Counter(signs).most_common(2)
    tied = len(counted) > 1 and counted[0][1] == counted[1][1]
    return "neutral" if tied else counted[0][0]


def mean(signs: Iterable[Sign]) -> Sign:
    """Give the sign of the mean; within a third of 0 it is neutral."""
    values = [{"positive": 1, "neutral": 0, "negative": -1}[sign] for sign in signs]
    value = sum(values) / len(values)
    return "positive" if value > 1 / 3 else "negative" if value < -1 / 3 else "neutral"


def by_conversation(part: list[Sample], of_signs: Callable[[Iterable[Sign]], Sign], *, everybody: bool) -> list[Pair]:
    """Pair what people say of a conversation with what the analyst says."""
    pairs: list[Pair] = []
    for sample in part:
        signs = sample.signs if everybody else [sign for _, sign in sample.of_user()]
        pairs.append((of_signs(signs), OF_EMOTION[local.emotion(sample.conversation).emotion]))
    return pairs


def by_message(part: list[Sample]) -> list[Pair]:
    """Pair what people say of each user message with what the analyst says of it alone."""
    return [(sign, OF_EMOTION[_emotion_of(text)]) for sample in part for text, sign in sample.of_user()]


def _emotion_of(text: str) -> EmotionName:
    turn = Turn(speaker="user", text=text, at=NOWHERE)
    alone = Conversation(conversation_id="-", user_id="-", bot_id="-", digest="-", turns=(turn,))
    return local.emotion(alone).emotion


def agreement(pairs: list[Pair]) -> tuple[float, float, float]:
    """Give agreement, base rate and Cohen's kappa of the pairs."""
    total = len(pairs)
    theirs, ours = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    agreed = sum(a == b for a, b in pairs) / total
    chance = sum(theirs[sign] * ours[sign] for sign in SIGNS) / total**2
    return agreed, max(theirs.values()) / total, (agreed - chance) / (1 - chance) if chance < 1 else 0.0


def sentiment_table(halves: dict[str, list[Sample]]) -> Table:
    """Lay out agreement, base rate and kappa of every way to compare."""
    table = Table(title=f"Sentiment: {local.BY} against the annotators", title_justify="left")
    for heading in ("compared", "conversations", "n", "agreement", "base rate", "kappa"):
        table.add_column(heading, justify="left" if heading in {"compared", "conversations"} else "right")
    for name, pairs_of in SENTIMENT.items():
        for half, part in halves.items():
            pairs = pairs_of(part)
            agreed, base, kappa = agreement(pairs)
            table.add_row(name, half, str(len(pairs)), f"{agreed:.3f}", f"{base:.3f}", f"{kappa:+.3f}")
        table.add_section()
    return table


SENTIMENT: dict[str, Callable[[list[Sample]], list[Pair]]] = {
    "conversation, majority of user messages": lambda part: by_conversation(part, majority, everybody=False),
    "conversation, mean of user messages": lambda part: by_conversation(part, mean, everybody=False),
    "conversation, majority of all messages": lambda part: by_conversation(part, majority, everybody=True),
    "single user messages": by_message,
}


def confusion_table(title: str, pairs: list[Pair]) -> Table:
    """Lay out which class of people's met which of ours."""
    counts = Counter(pairs)
    table = Table(title=title, title_justify="left")
    table.add_column("people say")
    for sign in SIGNS:
        table.add_column(f"we: {sign}", justify="right")
    table.add_column("found", justify="right")
    for theirs in SIGNS:
        row = [counts[theirs, ours] for ours in SIGNS]
        found = f"{counts[theirs, theirs] / sum(row):.3f}" if sum(row) else "-"
        table.add_row(theirs, *map(str, row), found)
    return table


# --- questions


def question_counts(part: list[Sample], instead: str) -> Counter[tuple[bool, bool]]:
    """Count user messages by whether they hold a mark, and whether a question is found with the marks replaced."""
    counts: Counter[tuple[bool, bool]] = Counter()
    for sample in part:
        for text, _ in sample.of_user():
            cleaned = words.clean(text.replace("?", instead))
            found = asked.raised(words.UserTurn(text=cleaned, language=words.language(cleaned)))
            counts["?" in text, bool(found)] += 1
    return counts


def question_table(halves: dict[str, list[Sample]]) -> Table:
    """Lay out recall and precision of questions by form, with all four counts."""
    table = Table(title="Questions by form: user messages with a mark, the marks taken out", title_justify="left")
    for heading in (
        "marks",
        "conversations",
        "recall",
        "precision",
        "base rate",
        "found",
        "missed",
        "extra",
        "rightly none",
    ):
        table.add_column(heading, justify="left" if heading in {"marks", "conversations"} else "right")
    for name, instead in {"made full stops": ".", "removed": ""}.items():
        for half, part in halves.items():
            counts = question_counts(part, instead)
            found, missed, extra = counts[True, True], counts[True, False], counts[False, True]
            # The precision of answering "a question" to every message.
            base = (found + missed) / counts.total()
            rates = (found / (found + missed), found / (found + extra), base)
            table.add_row(
                name, half, *(f"{rate:.3f}" for rate in rates), *map(str, (found, missed, extra, counts[False, False]))
            )
        table.add_section()
    return table


def main(arguments: list[str]) -> int:
    """Print every figure, and give the exit code."""
    folder = Path(arguments[0]) if arguments else ROOT.parent / "shared" / "data"
    # In a pipe rich would fold every cell into 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    try:
        read = samples(folder)
    except OSError as error:
        print(f"cannot read the data ({error}); give its folder: scripts/bench/analyst.py FOLDER", file=sys.stderr)
        return 2
    first, rest = read[:TUNED_ON], read[TUNED_ON:]
    halves = {"first 60 (tuned on)": first, "other 60": rest}
    console.print(sentiment_table(halves))
    console.print(confusion_table("Other 60: conversations, majority of user messages", SENTIMENT_MAJORITY(rest)))
    console.print(confusion_table("Other 60: single user messages", by_message(rest)))
    console.print(question_table(halves))
    return 0


SENTIMENT_MAJORITY = SENTIMENT["conversation, majority of user messages"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
